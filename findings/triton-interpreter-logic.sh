#!/usr/bin/env bash
# `not`, `and` and `or` of masks mean one thing to Triton's compiler and another to its interpreter.
#
# Guess: a kernel that compiles stores the same elements under TRITON_INTERPRET=1. `not mask` inverts each element, as
#   in the compiled kernel, or the interpreter refuses it, as NumPy does for the truth of an array.
# Seen: the compiler works element by element: `not` becomes xor, with no warning, and `and` and `or` become the bitwise
#   operations, with a deprecation warning. The interpreter leaves them to Python, to which every block of two elements
#   or more is true: `not mask` stores nothing, `a and b` is b, and `a or b` is a. It raises and warns of nothing.
# Versions: Triton 3.9.0 with PyTorch 2.13.0 and NumPy 2.4.6.
# Why it matters: `inside = (row < rows) and (column < columns)` loses the test of the rows, so the interpreted kernel
#   writes where the compiled one does not. Tests in the interpreter then fail for a correct kernel, or pass because
#   their sizes are multiples of the block, and miss the case that the mask is for.
# Instead: ~, & and | with each comparison in parentheses, which mean the same to both.
#
# Expected output:
#   Triton 3.9.0: indices that are stored, of 0 to 7, with a = (i < 6), b = (i > 2)
#   interpreted  not a: []; a and b: [3, 4, 5, 6, 7]; a or (i > 6): [0, 1, 2, 3, 4, 5]
#   with ~, &, | not a: [6, 7]; a and b: [3, 4, 5]; a or (i > 6): [0, 1, 2, 3, 4, 5, 7]
#   compiled: not a is arith.xori, a and b is arith.andi, a or b is arith.ori of blocks
set -euo pipefail
[ $# -gt 0 ] || set -- triton==3.9.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# Triton comes second: on some systems PyTorch brings a Triton of its own.
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import re
import sys
import warnings

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

warnings.simplefilter("ignore")  # the compiler's note about `and`


def words(out, low, high, last, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, 1, mask=not (i < high))
    tl.store(out + N + i, 1, mask=(i < high) and (i > low))
    tl.store(out + 2 * N + i, 1, mask=(i < high) or (i > last))


def signs(out, low, high, last, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, 1, mask=~(i < high))
    tl.store(out + N + i, 1, mask=(i < high) & (i > low))
    tl.store(out + 2 * N + i, 1, mask=(i < high) | (i > last))


def stored(kernel):
    out = torch.zeros(3, 8, dtype=torch.int32)
    kernel[(1,)](out, 2, 6, 6, N=8)
    return [row.nonzero().flatten().tolist() for row in out]


compiled = triton.jit(words)
triton.knobs.runtime.interpret = True
print(f"Triton {triton.__version__}: indices that are stored, of 0 to 7, with a = (i < 6), b = (i > 2)")
by_words, by_signs = stored(triton.jit(words)), stored(triton.jit(signs))
for name, rows in (("interpreted ", by_words), ("with ~, &, |", by_signs)):
    print(f"{name} not a: {rows[0]}; a and b: {rows[1]}; a or (i > 6): {rows[2]}")
triton.knobs.runtime.interpret = False
source = ASTSource(compiled, {"out": "*i32", "low": "i32", "high": "i32", "last": "i32"}, {"N": 8})
text = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"]
found = re.findall(r"arith\.(xori|andi|ori) .*tensor<8xi1>", text)
print("compiled: not a is arith.{}, a and b is arith.{}, a or b is arith.{} of blocks".format(*found))
elementwise = [[6, 7], [3, 4, 5], [0, 1, 2, 3, 4, 5, 7]]
python = [[], [3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]]
if not (by_words == python and by_signs == elementwise and found == ["xori", "andi", "ori"]):
    sys.exit("No longer seen: the interpreter and the compiler agree about the masks, or differ in another way.")
PYTHON
TRITON_CACHE_DIR=$folder/cache TRITON_DEFAULT_FP_FUSION=1 venv/bin/python program.py

#!/usr/bin/env bash
# Triton's interpreter computes with the bits of bfloat16 as if they were integers.
#
# Guess: TRITON_INTERPRET=1 gives what the compiled kernel gives, to the rounding of the dtype. NumPy has no bfloat16,
#   so the interpreter should compute in float32 and round the results.
# Seen: a bfloat16 tensor is kept as 16-bit integers. A cast to float32 reads them as numbers; addition, subtraction and
#   tl.dot do not. 1 + 1 is 1.7e38, 3 - 1 is 1.8e-38, and the product of two identity matrices has 264,257,536 on its
#   diagonal, the square of the bits of 1. A cast from float32 drops the low bits (1 + 3/256 becomes 1 + 2/256), where
#   the compiler emits cvt.rn, which rounds to the nearest.
# Versions: Triton 3.9.0 with PyTorch 2.13.0 and NumPy 2.4.6.
# Why it matters: tests of kernels on the CPU fail for a correct kernel, or cover float32 alone. The cast is harder to
#   see: its error is small enough for a tolerance, and always towards zero.
# Instead: in kernels cast to float32 after each load and give tl.dot float32 in the interpreter, or replace the
#   interpreter's create_dot and cast by functions that convert.
#
# Expected output:
#   Triton 3.9.0, interpreted, in bfloat16
#   1 + 1 = 1.70141e+38
#   3 - 1 = 1.76324e-38
#   the product of two identity matrices, first element = 264257536
#   1.01171875 from float32 to bfloat16 = 1.0078125, by PyTorch 1.015625
#   compiled for sm_80: cvt.rn.bf16.f32
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

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def arithmetic(x, y, identity, out, N: tl.constexpr):
    i = tl.arange(0, 4)
    ones, threes = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, ones + ones)
    tl.store(out + 4 + i, threes - ones)
    rows = tl.arange(0, N)
    square = rows[:, None] * N + rows[None, :]
    matrix = tl.load(identity + square)
    tl.store(out + 8 + square, tl.dot(matrix, matrix))


def round_trip(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16).to(tl.float32))


compiled = triton.jit(round_trip)
triton.knobs.runtime.interpret = True
interpreted_arithmetic, interpreted_round_trip = triton.jit(arithmetic), triton.jit(round_trip)

print(f"Triton {triton.__version__}, interpreted, in bfloat16")
result = torch.zeros(8 + 16 * 16)
ones = torch.ones(4).bfloat16()
interpreted_arithmetic[(1,)](ones, 3 * ones, torch.eye(16).bfloat16(), result, N=16)
total, difference, one = result[0].item(), result[4].item(), result[8].item()
print(f"1 + 1 = {total:g}")
print(f"3 - 1 = {difference:g}")
print(f"the product of two identity matrices, first element = {one:.0f}")
value = torch.full((16,), 1 + 3 / 256)
cut = torch.zeros(16)
interpreted_round_trip[(1,)](value, cut, N=16)
nearest = value.bfloat16().float()
print(f"{value[0]} from float32 to bfloat16 = {cut[0]}, by PyTorch {nearest[0]}")
source = ASTSource(compiled, {"x": "*fp32", "out": "*fp32"}, {"N": 128})
instruction = re.search(r"cvt\.\S*bf16\S*\.f32", triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"])
print(f"compiled for sm_80: {instruction[0] if instruction else 'no cvt'}")
bits = 0x3F80  # of 1 in bfloat16
as_integers = one == bits * bits and total > 1e38 and difference < 1e-37
if not (as_integers and cut[0] == 1 + 2 / 256 and nearest[0] == 1 + 4 / 256):
    sys.exit("No longer seen: the interpreter computes with the values of bfloat16, or rounds to the nearest.")
PYTHON
TRITON_CACHE_DIR=$folder/cache TRITON_DEFAULT_FP_FUSION=1 venv/bin/python program.py

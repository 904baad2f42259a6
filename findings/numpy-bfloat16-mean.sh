#!/usr/bin/env bash
# NumPy's mean and sum of bfloat16 weights stop counting after a few hundred values.
#
# Guess: numpy.mean of a 16-bit array is near the mean. NumPy's own float16 is reduced in float32, and its manual says
#   so; ml_dtypes.bfloat16, which safetensors.numpy.load_file returns for a file in BF16, should be treated the same
#   way.
# Seen: mean, sum, var, std and cumsum add in bfloat16, one element after another. With 8 bits of significand, 256 + 1
#   rounds back to 256, so the sum of ten thousand ones is 256 and their mean 0.0256. There is no warning.
# Versions: ml_dtypes 0.6.0 and NumPy 2.4.6, with a file of safetensors 0.8.0.
# Why it matters: statistics of weights or activations that are kept in bfloat16 (a norm, a scale for quantization, a
#   check of an exported file) are wrong by orders of magnitude, the more so the larger the array.
# Instead: array.astype(numpy.float32) first, or dtype=numpy.float32 in sum, mean, var and std.
#
# Expected output:
#   NumPy 2.4.6, ml_dtypes 0.6.0, safetensors 0.8.0: 10,000 weights of 1 as loaded, bfloat16
#   mean 0.0256, as float16 1.0000, with dtype=float32 1.0000
#   sum 256, as float16 10000, with dtype=float32 10000
#   standard deviation of 100,000 normal weights 0.2051, with dtype=float32 1.0001
set -euo pipefail
[ $# -gt 0 ] || set -- numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import sys

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

normal = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
save_file(
    {"ones": np.ones(10_000, ml_dtypes.bfloat16), "normal": normal.astype(ml_dtypes.bfloat16)},
    "weights.safetensors",
)
weights = load_file("weights.safetensors")
ones = weights["ones"]
print(f"NumPy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, safetensors {safetensors.__version__}: ", end="")
print(f"10,000 weights of 1 as loaded, {ones.dtype}")
half = ones.astype(np.float16)
mean, total, spread = float(ones.mean()), float(ones.sum()), float(weights["normal"].std())
print(f"mean {mean:.4f}, as float16 {half.mean():.4f}, with dtype=float32 {ones.mean(dtype=np.float32):.4f}")
print(f"sum {total:.0f}, as float16 {half.sum():.0f}, with dtype=float32 {ones.sum(dtype=np.float32):.0f}")
wide = float(weights["normal"].std(dtype=np.float32))
print(f"standard deviation of 100,000 normal weights {spread:.4f}, with dtype=float32 {wide:.4f}")
if not (total == 256 and mean < 0.03 and spread < 0.5 and abs(wide - 1) < 0.01 and half.mean() == 1):
    sys.exit("No longer seen: the reductions of bfloat16 are right, or wrong in another way.")
PYTHON
venv/bin/python program.py

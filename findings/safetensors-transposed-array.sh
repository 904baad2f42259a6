#!/usr/bin/env bash
# safetensors' NumPy saver stores a transposed array's memory under the transpose's shape.
#
# Guess: save_file(tensors) then load_file() gives the values back whatever the strides of an array are, as numpy.save
#   and safetensors 0.7.0 do, or it refuses an array that is not C-contiguous, as the PyTorch saver does.
# Seen: no error. The file holds the bytes in the order that they have in memory, so a matrix saved as w.T or in Fortran
#   order comes back scrambled, with the right shape and dtype.
# Versions: safetensors 0.8.0 with NumPy 2.4.6. 0.7.0 is right.
# Why it matters: weights are transposed on export and by optimizers, and ndarray.copy(order="K") and np.array keep the
#   order of a transpose. The loaded model runs and produces noise.
# Instead: numpy.ascontiguousarray at every save_file and save.
#
# Expected output:
#   safetensors 0.8.0, NumPy 2.4.6
#   saved  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   loaded, contiguous before the save [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
set -euo pipefail
[ $# -gt 0 ] || set -- safetensors==0.8.0 numpy==2.4.6
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print(f"safetensors {safetensors.__version__}, NumPy {np.__version__}")
matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
save_file({"matrix": matrix}, "matrix.safetensors")
loaded = load_file("matrix.safetensors")["matrix"]
print("saved ", matrix.tolist())
print("loaded", loaded.tolist())
save_file({"matrix": np.ascontiguousarray(matrix)}, "matrix.safetensors")
contiguous = load_file("matrix.safetensors")["matrix"]
print("loaded, contiguous before the save", contiguous.tolist())
scrambled = np.arange(6, dtype=np.float32).reshape(3, 2)
if not (np.array_equal(loaded, scrambled) and np.array_equal(contiguous, matrix)):
    sys.exit("No longer seen: the transposed array does not come back as its memory.")
PYTHON
venv/bin/python program.py

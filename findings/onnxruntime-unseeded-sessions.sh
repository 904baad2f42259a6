#!/usr/bin/env bash
# onnxruntime sessions of one process all draw the same "unseeded" random numbers.
#
# Guess: without the attribute seed, Multinomial, RandomUniform and similar operators draw differently in each session:
#   ONNX's specification says that a seed is then generated. Three sessions of a file that samples inside the graph
#   write three texts.
# Seen: each new session of the same file in a process starts the same stream: the three write the same text, token for
#   token. A new process writes another.
# Versions: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: a server with one session per thread gives simultaneous users the same sample, and a session opened
#   for each request always gives the same answer. A test that compares two sessions concludes that sampling is
#   deterministic.
# Instead: feed uniform or Gumbel noise as an input, drawn outside the graph, or share one session.
#
# Expected output (the numbers differ from run to run; the three lines do not differ from one another):
#   onnxruntime 1.32.0, onnx 1.23.2
#   session 1 [2, 0, 1, 2, 1, 2, 0, 1, 1, 2, 0, 2, ...
#   session 2 [2, 0, 1, 2, 1, 2, 0, 1, 1, 2, 0, 2, ...
#   session 3 [2, 0, 1, 2, 1, 2, 0, 1, 1, 2, 0, 2, ...
#   another process draws other numbers
set -euo pipefail
[ $# -gt 0 ] || set -- onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

# One step of sampling, from logits to a token; Multinomial takes unnormalized log-probabilities.
graph = helper.make_graph(
    [helper.make_node("Multinomial", ["logits"], ["token"], sample_size=1, dtype=TensorProto.INT32)],
    "step",
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
    [helper.make_tensor_value_info("token", TensorProto.INT32, [1, 1])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
logits = np.zeros((1, 4), np.float32)


def text():
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [int(session.run(None, {"logits": logits})[0][0, 0]) for _ in range(60)]


if sys.argv[1:] == ["once"]:
    print(json.dumps(text()))
    sys.exit()
print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}")
texts = [text() for _ in range(3)]
for number, tokens in enumerate(texts, 1):
    print(f"session {number} {str(tokens[:12])[:-1]}, ...")
other = json.loads(subprocess.check_output([sys.executable, __file__, "once"]))
print("another process draws", "the same numbers" if other == texts[0] else "other numbers")
if not (texts[0] == texts[1] == texts[2] != other and len(set(texts[0])) > 1):
    sys.exit("No longer seen: sessions of one process draw different numbers, or processes draw the same.")
PYTHON
venv/bin/python program.py

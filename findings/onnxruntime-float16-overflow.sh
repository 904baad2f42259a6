#!/usr/bin/env bash
# onnxruntime's CPU runs a float16 model in float32, so that what overflows in 16 bits passes every test there.
#
# Guess: a model whose tensors are all float16 gives on the CPU what 16-bit arithmetic gives: slower than on a GPU, but
#   inf where a value passes 65504. With ORT_DISABLE_ALL at least, each node runs as the file has it.
# Seen: where onnxruntime has no float16 kernel for the CPU, it puts one Cast before a group of nodes and one after it,
#   at every level of optimization, and computes in float32 between them. x / sqrt(mean(x * x)) of x = 300 is 1,
#   although the squares (90,000) are beyond float16 and ONNX's own evaluator gives 0. Declared as an output, the mean
#   reads inf, yet the quotient that is computed from it is still 1: it does not use the tensor that is shown.
# Versions: onnxruntime 1.32.0 (x86-64), onnx 1.23.2.
# Why it matters: an fp16 export that was checked on the CPU may overflow in RMSNorm or attention where kernels are
#   16-bit, and looking at the intermediate tensors blames the wrong place.
# Instead: check with onnx.reference.ReferenceEvaluator, which rounds after each node, or watch the largest magnitude of
#   each tensor in the float32 model.
#
# Expected output:
#   onnxruntime 1.32.0, onnx 1.23.2
#   optimized       y [1.0, -1.0, 1.0, -1.0], mean as an output inf
#   not optimized   y [1.0, -1.0, 1.0, -1.0], mean as an output inf
#   ONNX evaluator  y [0.0, -0.0, 0.0, -0.0], mean as an output inf
set -euo pipefail
[ $# -gt 0 ] || set -- onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}")
warnings.simplefilter("ignore")  # the evaluator's overflow, which is what is looked for
graph = helper.make_graph(
    [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["mean"]),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["y"]),
    ],
    "rms_norm",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4])],
    [
        helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 4]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT16, [1, 1]),
    ],
    [numpy_helper.from_array(np.array([-1]), "axis")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
x = np.array([[300, -300, 300, -300]], np.float16)


def run(level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y", "mean"], {"x": x})


results = {
    "optimized": run(ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
    "not optimized": run(ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    "ONNX evaluator": ReferenceEvaluator(model).run(["y", "mean"], {"x": x}),
}
for name, (y, mean) in results.items():
    print(f"{name:15} y {y[0].tolist()}, mean as an output {mean[0, 0]}")
right = np.sign(x)
passes = all(np.array_equal(results[name][0], right) for name in ("optimized", "not optimized"))
infinite = all(np.isinf(mean).all() for _, mean in results.values())
if not (passes and infinite and not results["ONNX evaluator"][0].any()):
    sys.exit("No longer seen: the CPU computes these nodes in 16 bits, or the outputs agree with one another.")
PYTHON
venv/bin/python program.py

"""Compare every kernel, forward and every gradient, with float64 and with plain PyTorch in the same dtype."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.checks import accuracy
from kernels.checks.cases import Case, cases
from tests.kernels.marks import needs_gpu, needs_interpreter

CASES = list(cases())
# The interpreter is slow: float16 takes the same paths as bfloat16, and a second sequence the same in every dtype.
INTERPRETED = [
    case._replace(batch=1) if case.op == "attention" and (case.time == 100 or case.dtype != torch.float32) else case
    for i, case in enumerate(CASES)
    if case.dtype != torch.float16 or i % 4 == 0
]


@needs_interpreter
@pytest.mark.parametrize("case", INTERPRETED, ids=str)
def test_interpreted(case: Case) -> None:
    rows = accuracy.measure(case, torch.device("cpu"))
    assert [violation for violation in map(accuracy.violation, rows) if violation] == []


@needs_gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu(case: Case) -> None:
    rows = accuracy.measure(case, torch.device("cuda"))
    assert [violation for violation in map(accuracy.violation, rows) if violation] == []


@needs_interpreter
def test_every_result_and_gradient_is_looked_at() -> None:
    one_each = {case.op: case for case in CASES if case.width in (16, 32) and case.variant in ("plain", "narrow")}
    found = {
        op: {row["result"] for row in accuracy.measure(case._replace(time=9), torch.device("cpu"))}
        for op, case in one_each.items()
    }
    assert found == {
        "attention": {"out0", "d_q", "d_k", "d_v"},
        "layer_norm": {"out0", "d_x", "d_weight", "d_bias"},
        "add_dropout_layer_norm": {"out0", "out1", "d_residual", "d_x", "d_weight", "d_bias"},
        "cross_entropy": {"out0", "d_logits"},
        "rotary": {"out0", "out1", "out2", "d_qkv"},
    }


WRONG = """
import os, sys
import kernels.checks.accuracy as accuracy
from kernels import ops
from kernels.checks.cases import Case

CASES = [Case("layer_norm", accuracy.torch.float32, 7, width) for width in (35, 36, 37, 38)]
right = ops.layer_norm

def layer_norm(x, weight, bias):
    if x.shape[1] == 36:
        return right(x, weight, bias) * (1 + 1e-4)
    if x.shape[1] == 37:
        os._exit(11)
    return right(x, weight, bias)

ops.layer_norm = layer_norm
accuracy.cases = lambda: CASES
if __name__ == "__main__":
    sys.exit(accuracy.main(sys.argv[1:]))
"""


@needs_interpreter
def test_the_command_names_a_wrong_case_and_one_that_crashes_and_writes_the_others(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    command = [sys.executable, str(tmp_path / "wrong.py"), "--device", "cpu", "--jobs", "1"]
    process = subprocess.run(
        [*command, "--json", str(tmp_path / "accuracy.json")], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 1, process.stderr
    violations = [line for line in process.stderr.splitlines() if "7x3" in line]
    assert violations[0] == "layer_norm-fp32-7x37-0.0-plain: its process ended with exit code 11"
    assert violations[1].startswith("layer_norm-fp32-7x36-0.0-plain out0: error 1.0e-04")
    content = json.loads((tmp_path / "accuracy.json").read_text("utf-8"))
    assert [row["result"] for row in content["rows"]] == 3 * ["out0", "d_x", "d_weight", "d_bias"]


@needs_interpreter
@pytest.mark.parametrize("fault", ["unwritten", "other bits"])
def test_what_a_kernel_leaves_unwritten_and_other_bits_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.gpu import cross_entropy

    case = Case("cross_entropy", torch.float32, 33, 65)
    right, calls = cross_entropy.backward, []

    def wrong(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        result = right(*arguments)
        if fault == "unwritten":
            partly = torch.empty_like(result)
            partly[1:] = result[1:]
            return partly
        return result * (1 + 2e-7 * len(calls))

    monkeypatch.setattr(cross_entropy, "backward", wrong)
    if fault == "unwritten":
        rows = accuracy.measure(case, torch.device("cpu"))
        assert [row["result"] for row in rows if accuracy.violation(row)] == ["d_logits"]
    else:
        with pytest.raises(RuntimeError, match="other bits"):
            accuracy.measure(case, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the program changes
    assert accuracy.main(["--device", "cuda", "--json", str(tmp_path / "accuracy.json")]) == 2
    assert capsys.readouterr().err.count("--device cpu interprets") == 1
    assert not (tmp_path / "accuracy.json").exists()


@pytest.mark.parametrize(
    ("error", "rms_error", "complains"),
    [(1e-6, 1e-7, False), (2e-5, 1e-7, True), (1e-6, 2e-6, True), (float("nan"), 1e-7, True)],
)
def test_only_large_errors_are_violations(error: float, rms_error: float, complains: bool) -> None:
    row = {"case": "case", "result": "d_q", "dtype": "float32"}
    row |= {"error": error, "rms_error": rms_error, "pytorch_rms_error": 3e-7}
    assert (accuracy.violation(row) is not None) == complains

"""Every kernel, forward and every gradient, against float64 and against plain PyTorch in the same dtype."""

import json
from pathlib import Path

import pytest
import torch

from kernels import ops
from kernels.checks import accuracy
from kernels.checks.accuracy import Case
from tests.kernels.marks import needs_gpu, needs_interpreter

CASES = list(accuracy.cases())


@needs_interpreter
@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted(case: Case) -> None:
    rows = accuracy.measure(case, torch.device("cpu"))
    assert [complaint for complaint in map(accuracy.complaint, rows) if complaint] == []


@needs_gpu
@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_on_a_gpu(op: str) -> None:
    rows = [row for case in CASES if case.op == op for row in accuracy.measure(case, torch.device("cuda"))]
    assert [complaint for complaint in map(accuracy.complaint, rows) if complaint] == []


@needs_interpreter
def test_every_result_and_gradient_is_looked_at() -> None:
    found = {
        case.op: {row["result"] for row in accuracy.measure(case, torch.device("cpu"))}
        for case in CASES
        if case.dtype == torch.float32 and case.width in (16, 96)
    }
    assert found == {
        "attention": {"out0", "d_q", "d_k", "d_v"},
        "layer_norm": {"out0", "d_x", "d_weight", "d_bias"},
        "add_dropout_layer_norm": {"out0", "out1", "d_residual", "d_x", "d_weight", "d_bias"},
        "cross_entropy": {"out0", "d_logits"},
    }


@needs_interpreter
def test_the_command_writes_what_it_found_and_fails_with_a_wrong_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "cases", lambda: [Case("layer_norm", torch.float32, 7, 35)])
    flags = ["--device", "cpu", "--json", str(tmp_path / "accuracy.json")]
    assert accuracy.main(flags) == 0
    content = json.loads((tmp_path / "accuracy.json").read_text("utf-8"))
    assert [row["result"] for row in content["rows"]] == ["out0", "d_x", "d_weight", "d_bias"]
    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda x, weight, bias: right(x, weight, bias) * (1 + 1e-4))
    assert accuracy.main(flags) == 1
    assert "out0: error 1.0e-04" in capsys.readouterr().err


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
def test_what_is_complained_about(error: float, rms_error: float, complains: bool) -> None:
    row = {"case": "case", "result": "d_q", "dtype": "float32"}
    row |= {"error": error, "rms_error": rms_error, "pytorch_rms_error": 3e-7}
    assert (accuracy.complaint(row) is not None) == complains

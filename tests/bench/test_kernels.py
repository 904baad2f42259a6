"""Test the parts of bench.kernels that need no GPU."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench import kernels
from bench.kernels import Ceilings
from kernels import backend, ops
from kernels.checks import accuracy
from kernels.checks.cases import Case, Op, make_inputs
from kernels.checks.roofline import Shape, work

SMALL = Shape(batch=2, time=33, heads=2, width=16, vocab=19)
CPU = torch.device("cpu")
CASES = kernels.cases(SMALL)


def named(case: Case) -> str:
    return f"{case.op}-{case.dropout_p}"


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "bench.kernels"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.kernels needs an NVIDIA GPU (sm_80 or newer): ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("wrong", [["--width", "256"], ["--rounds", "0"], ["--batch", "many"]])
def test_mistakes_exit_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        kernels.main(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_every_op_is_there_with_and_without_dropout() -> None:
    with_dropout = {(op, p) for op in ("attention", "add_dropout_layer_norm") for p in (0.0, 0.2)}
    assert {(case.op, case.dropout_p) for case in CASES} == with_dropout | {
        (op, 0.0) for op in ("layer_norm", "cross_entropy", "rotary")
    }


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_kernels_arithmetic_passes_the_check(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "KERNELS", "reference")
    assert 0 < kernels.check(case, CPU) < 0.01


@pytest.mark.parametrize("op", ["attention", "layer_norm", "add_dropout_layer_norm", "cross_entropy"])
@pytest.mark.parametrize("wrong", [1.05, float("nan")])
def test_a_wrong_op_does_not(op: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.op == op)
    right = getattr(ops, op)

    def off(*inputs: torch.Tensor, **options: object) -> object:
        outputs = right(*inputs, **options)
        return tuple(wrong * output for output in outputs) if isinstance(outputs, tuple) else wrong * outputs

    monkeypatch.setattr(accuracy, "KERNELS", "reference")
    monkeypatch.setattr(ops, op, off)
    with pytest.raises(kernels.WrongResultError, match=op):
        kernels.check(case, CPU)


@pytest.mark.parametrize("case", [case for case in CASES if not case.dropout_p], ids=named)
def test_ours_and_pytorchs_agree_in_every_pass(case: Case) -> None:
    engines = kernels.sides(case)
    assert list(engines) == ["charformer", "torch", "torch-compile"]
    with backend.force("reference"):  # the registered op, which "torch" never uses
        ours = flat(case, engines["charformer"])
    theirs = flat(case, engines["torch"])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def flat(case: Case, side: Op) -> list[torch.Tensor]:
    inputs = make_inputs(case, CPU)
    passes: list[Any] = [kernels.prepared(case, inputs, side, direction)() for direction in kernels.PASSES]
    return [tensor for timed in passes for tensor in timed()]


def test_pytorchs_dropout_is_on() -> None:
    case = next(case for case in CASES if case.op == "add_dropout_layer_norm" and case.dropout_p)
    inputs = make_inputs(case, CPU)
    total, _ = kernels.sides(case)["torch"](*inputs.values())
    assert (total == inputs["residual"]).float().mean().item() == pytest.approx(0.2, abs=0.04)


def test_a_row_has_shares_of_what_was_measured() -> None:
    attention = next(case for case in CASES if case.op == "attention")
    forward, backward = (work(SMALL)["attention", way] for way in ("forward", "backward"))
    ceilings = Ceilings(bandwidth=1e9, peak=1e12)
    row = kernels.row(attention, SMALL, ceilings, "torch", "both", [3e-3, 1e-3, 2e-3], None)
    assert row["seconds"] == pytest.approx({"p20": 1.4e-3, "p50": 2e-3, "p80": 2.6e-3})
    assert row["bytes"] == forward.fused_bytes + backward.fused_bytes
    assert row["bandwidth_share"] == pytest.approx(row["bytes"] / 2e6)
    assert row["peak_share"] == pytest.approx((forward.flops + backward.flops) / 2e9)
    assert (row["engine"], row["op"], row["pass"], row["dropout"]) == ("torch", "attention", "both", 0)
    assert (row["precision"], row["batch"], row["context"], row["error"]) == ("bf16", 2, 33, None)


def test_an_op_without_matrix_products_has_no_share_of_their_peak() -> None:
    case = next(case for case in CASES if case.op == "cross_entropy")
    row = kernels.row(case, SMALL, Ceilings(1e9, 1e12), "charformer", "forward", [1e-6], 1e-3)
    assert row["peak_share"] is None
    assert row["bandwidth_share"] == pytest.approx(work(SMALL)["cross_entropy", "forward"].fused_bytes / 1e3)

"""Compare the static roofline with counts made by hand."""

import subprocess
import sys

import pytest

from kernels.checks import roofline
from kernels.checks.cards import CARDS
from kernels.checks.roofline import Shape, Work, predict, step_seconds, work

STEP = work(Shape())
N, C, SCORES = 12_288, 384, 32 * 6 * 384 * 384  # the preset `baseline`


def test_attention_flops_are_those_of_the_causal_half() -> None:
    product = 2 * 64 * SCORES / 2
    assert STEP["attention", "forward"].flops == 2 * product
    assert STEP["attention", "backward"].flops == (3 + 4) * product  # of dq and of dkv


def test_attention_bytes() -> None:
    lse = 32 * 6 * 384 * 4
    assert STEP["attention", "forward"].fused_bytes == 4 * N * C * 2 + lse
    assert STEP["attention", "backward"].fused_bytes == (6 + 6) * N * C * 2 + 4 * lse
    # 10 passes over the scores forward, 13 backward, and twice a mask of a byte, beside 12 tensors of N x C.
    whole = sum(STEP["attention", way].unfused_bytes for way in ("forward", "backward"))
    assert whole == 12 * N * C * 2 + SCORES * (23 * 2 + 2)


def test_add_norm_keeps_its_stream_in_float32() -> None:
    forward, backward = (STEP["add_dropout_layer_norm", way].fused_bytes for way in ("forward", "backward"))
    assert forward == N * C * (4 + 2 + 4 + 2) + 2 * N * 4 + 2 * C * 4
    assert backward == pytest.approx(N * C * (3 * 4 + 2 * 2), rel=0.03)  # and row statistics, weights, partial sums
    same = work(Shape(dtype="fp32"))["add_dropout_layer_norm", "forward"]
    assert same.fused_bytes - forward == 2 * N * C * 2
    assert same.unfused_bytes == N * C * (7 * 4 + 1) + 2 * N * 4 + 2 * C * 4


def test_rotary_positions_read_and_write_each_of_q_k_and_v_once() -> None:
    for way in ("forward", "backward"):
        assert STEP["rotary", way] == Work(0, 6 * N * C * 2, 12 * N * C * 2)
    card = CARDS["rtx-3050"]
    assert {row.op for row in predict(card, Shape(rotary=True))} - {row.op for row in predict(card, Shape())} == {
        "rotary"
    }


def test_cross_entropy_reads_its_logits_once_a_pass() -> None:
    assert STEP["cross_entropy", "forward"].fused_bytes == pytest.approx(N * (87 * 2 + 8 + 4), rel=0.02)
    assert STEP["cross_entropy", "backward"].fused_bytes == N * (2 * 87 * 2 + 8 + 4)


def test_layer_norm_without_dropout_or_sum_saves_a_reading_of_two_tensors() -> None:
    forward, backward = (STEP["layer_norm", way] for way in ("forward", "backward"))
    assert forward == Work(0, N * C * 8 + N * 8 + 2 * C * 4, N * C * 8 + N * 8 + 2 * C * 4)
    assert backward.unfused_bytes - backward.fused_bytes == pytest.approx(2 * N * C * 4, rel=0.05)


def test_fusing_saves_bytes() -> None:
    for shape in (Shape(), Shape(34, 128), Shape(8, 100, 3, 48, 5, 1, "fp16"), Shape(dtype="fp32")):
        for one in work(shape).values():
            assert one.fused_bytes <= one.unfused_bytes


def test_peaks() -> None:
    assert CARDS["rtx-3050"].peak("bf16") == pytest.approx(18.2e12, rel=0.01)
    assert CARDS["rtx-3050"].peak("fp32") == pytest.approx(9.1e12, rel=0.01)
    assert CARDS["h100"].peak("bf16") == pytest.approx(989e12, rel=0.01)


def test_a_baseline_step_on_an_rtx_3050() -> None:
    rows = predict(CARDS["rtx-3050"], Shape())
    by_op = {op: step_seconds([row for row in rows if row.op == op]) for op in {row.op for row in rows}}
    assert by_op["matrix products"][0] == pytest.approx(0.043, rel=0.05)
    parameters = 10_854_999  # of which embeddings, biases and norms are not multiplied
    assert by_op["matrix products"][0] == pytest.approx(6 * parameters * N / 18.2e12, rel=0.03)
    traffic = 6 * sum(row.work.fused_bytes for row in rows if row.op == "attention") / 224e9
    assert traffic == pytest.approx(0.004, rel=0.05)
    assert by_op["attention"][0] == pytest.approx(6 * 9 * 64 * SCORES / 18.2e12, rel=0.01)  # more than its traffic
    assert 0.036 < by_op["attention"][1] < 0.068
    assert 0.050 < step_seconds(rows)[0] < 0.060
    assert {row.op: row.calls for row in rows} == {
        "attention": 6,
        "layer_norm": 1,
        "add_dropout_layer_norm": 12,
        "cross_entropy": 1,
        "matrix products": 1,
    }


def test_matrix_products_of_a_narrow_model_are_bound_by_memory_on_a_large_card() -> None:
    row = predict(CARDS["h100"], Shape())[-1]
    assert row.fused_seconds == row.work.fused_bytes / 3350e9 > row.work.flops / CARDS["h100"].peak("bf16")


@pytest.mark.parametrize("card", CARDS)
def test_the_command_says_that_it_predicts(card: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--card", card]) == 0
    printed = capsys.readouterr().out
    assert printed.count("predicted") == 2
    assert card in printed
    assert all(op in printed for op, _ in STEP if op != "rotary")


@pytest.mark.parametrize("wrong", [["--card", "gtx-9000"], ["--batch", "0"], ["--time", "-3"], ["--dtype", "int8"]])
def test_mistakes_exit_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        roofline.main(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_needs_neither_torch_nor_triton() -> None:
    script = "import sys, kernels.checks.roofline; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0

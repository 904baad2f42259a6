"""Compare the CPU's attention with float64 and with PyTorch's own."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops
from kernels.cpu import attention as cpu_attention
from kernels.cpu.attention import attention, suits
from kernels.cpu.dropout import Masks


def packed(batch: int, heads: int, time: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Return q, k and v as a model makes them, views of one tensor, and a gradient."""
    torch.manual_seed(0)
    qkv = torch.randn(batch, time, 3, heads, width).to(dtype)
    d_out = torch.randn(batch, heads, time, width).to(dtype)
    return [*qkv.permute(2, 0, 3, 1, 4), d_out]


def results(attend: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the output and the gradients of q, k and v, in float64."""
    q, k, v, d_out = (x.detach().to(dtype) for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, d_out))]


def pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 2, 33, 24), (3, 2, 100, 7), (2, 4, 256, 64), (1, 1, 383, 33)])
@pytest.mark.parametrize("sharp", [1, 4, 8])  # a trained model's scores reach 45
def test_errors_are_at_most_twice_pytorchs(shape: tuple[int, int, int, int], sharp: int) -> None:
    """The limit also allows one rounding of the result, which matters if a few sharp rows leave hardly a gradient."""
    q, *rest = packed(*shape, torch.bfloat16)
    inputs = [q * sharp, *rest]
    exact = results(pytorch, inputs, torch.float64)
    ours, theirs = (results(attend, inputs, torch.bfloat16) for attend in (attention, pytorch))
    for wanted, mine, its in zip(exact, ours, theirs, strict=True):
        assert rms(mine - wanted) <= 2 * rms(its - wanted) + 2**-8 * rms(wanted)


def test_float32_and_float64() -> None:
    inputs = packed(2, 2, 50, 24, torch.float64)
    exact = results(pytorch, inputs, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3)):
        for wanted, mine in zip(exact, results(attention, inputs, dtype), strict=True):
            torch.testing.assert_close(mine, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dropout_p", [0.2, 0.75])
def test_with_dropout_values_and_gradients_are_those_of_the_formula(dropout_p: float) -> None:
    inputs = packed(2, 3, 21, 8, torch.float64)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keep = Masks(dropout_p).draw(torch.Size((2, 3, 21, 21)))
        scores = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(21, 21).triu(1).bool(), -math.inf)
        dropped = round(dropout_p * 65536) / 65536
        return (scores.softmax(-1) * keep / (1 - dropped)) @ v

    found = []
    for attend in (naive, lambda q, k, v: attention(q, k, v, dropout_p)):
        torch.manual_seed(7)
        found.append(results(attend, inputs, torch.float64))
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_with_dropout_equal_float64_under_the_same_masks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape has several tiles of heads and of rows, the last of each smaller than the others."""
    monkeypatch.setattr(cpu_attention, "ROWS", 32)
    monkeypatch.setattr(cpu_attention, "TILE", 2 * 32 * 70)
    inputs = packed(1, 5, 70, 16, dtype)
    found = []
    for precision in (torch.float64, dtype):
        torch.manual_seed(3)
        found.append(results(lambda q, k, v: attention(q, k, v, 0.3), inputs, precision))
    for wanted, mine in zip(*found, strict=True):
        assert rms(mine - wanted) <= (2**-7 if dtype == torch.bfloat16 else 1e-5) * rms(wanted)


def test_scores_below_zero_and_far_from_it() -> None:
    """The exponential of such a score would underflow to zero."""
    q, k, v, d_out = packed(1, 2, 40, 16, torch.bfloat16)
    q, k = q.abs() * 8, -k.abs() * 8
    exact, ours, theirs = (
        results(attend, [q, k, v, d_out], dtype)
        for attend, dtype in (
            (pytorch, torch.float64),
            (attention, torch.bfloat16),
            (pytorch, torch.bfloat16),
        )
    )
    for wanted, mine, its in zip(exact, ours, theirs, strict=True):
        assert rms(mine - wanted) <= 2 * rms(its - wanted) + 2**-8 * rms(wanted)


@pytest.mark.parametrize("dropout_p", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays_so(sign: float, dropout_p: float) -> None:
    """This includes NaN with a negative sign, which processors produce."""
    q, k, v, _ = packed(1, 2, 40, 16, torch.bfloat16)
    q = q.clone()
    q[0, 0, 7] = math.copysign(math.nan, sign)
    out = attention(q, k, v, dropout_p)
    assert out[0, 0, 7].isnan().all()
    assert out.isnan().sum() == 16


def test_under_autocast_nothing_is_cast() -> None:
    inputs = packed(1, 2, 16, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(attention, inputs, torch.float32)
    for wanted, mine in zip(results(pytorch, inputs, torch.float64), found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_how_products_of_float32_are_read_is_left_as_it_was(fails: bool) -> None:
    settings: Any = torch.backends.mkldnn
    q, k, v, _ = packed(1, 2, 16, 8, torch.bfloat16)
    for precision in ("none", "ieee", "bf16"):
        settings.matmul.fp32_precision = precision
        try:
            with nullcontext() if not fails else pytest.raises(RuntimeError):
                attention(q, k[:, :, :, :7] if fails else k, v)
            assert settings.matmul.fp32_precision == precision
        finally:
            settings.matmul.fp32_precision = "none"


def test_what_it_is_for() -> None:
    q, k, v, _ = packed(1, 2, 8, 4, torch.bfloat16)
    assert suits(q, k, 0.0)
    assert not suits(q.float(), k.float(), 0.0)
    assert suits(q.float(), k.float(), 0.1)
    assert not suits(q[:, :, -1:], k, 0.1), "the last character alone"
    many = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16).expand(65, 4, 512, 8)
    assert suits(many[:64], many[:64], 0.0)
    assert not suits(many, many, 0.0)
    assert not suits(q.to("meta"), k.to("meta"), 0.0)
    assert torch.equal(ops.attention(q, k, v), attention(q, k, v))

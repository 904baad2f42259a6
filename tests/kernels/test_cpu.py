"""The CPU's attention and dropout against float64 and against PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cpu, ops


def packed(batch: int, heads: int, time: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as a model makes them, views of one tensor, and a gradient."""
    torch.manual_seed(0)
    qkv = torch.randn(batch, time, 3, heads, width).to(dtype)
    d_out = torch.randn(batch, heads, time, width).to(dtype)
    return [*qkv.permute(2, 0, 3, 1, 4), d_out]


def results(attention: object, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of q, k and v, in float64."""
    q, k, v, d_out = (x.detach().to(dtype) for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, d_out))]


def pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 2, 33, 24), (3, 2, 100, 7), (2, 4, 256, 64), (1, 1, 383, 33)])
@pytest.mark.parametrize("sharp", [1, 4, 8])  # a trained model's scores reach 45
def test_errors_are_at_most_twice_pytorchs(shape: tuple[int, int, int, int], sharp: int) -> None:
    """And a rounding of the result, which counts where a few sharp rows leave hardly a gradient."""
    q, *rest = packed(*shape, torch.bfloat16)
    inputs = [q * sharp, *rest]
    exact = results(pytorch, inputs, torch.float64)
    ours, theirs = (results(attention, inputs, torch.bfloat16) for attention in (cpu.attention, pytorch))
    for wanted, mine, its in zip(exact, ours, theirs, strict=True):
        assert rms(mine - wanted) <= 2 * rms(its - wanted) + 2**-8 * rms(wanted)


def test_float32_and_float64() -> None:
    inputs = packed(2, 2, 50, 24, torch.float64)
    exact = results(pytorch, inputs, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for wanted, mine in zip(exact, results(cpu.attention, inputs, dtype), strict=True):
            torch.testing.assert_close(mine, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dropout_p", [0.2, 0.75])
def test_with_dropout_values_and_gradients_are_those_of_the_formula(dropout_p: float) -> None:
    inputs = packed(2, 3, 21, 8, torch.float64)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keep = cpu._keep(torch.Size((6, 21, 21)), dropout_p)[0].view(2, 3, 21, 21)
        scores = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(21, 21).triu(1).bool(), -math.inf)
        dropped = round(dropout_p * 65536) / 65536
        return (scores.softmax(-1) * keep / (1 - dropped)) @ v

    found = []
    for attention in (naive, lambda q, k, v: cpu.attention(q, k, v, dropout_p)):
        torch.manual_seed(7)
        found.append(results(attention, inputs, torch.float64))
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=1e-12)


def test_under_autocast_nothing_is_cast() -> None:
    inputs = packed(1, 2, 16, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(lambda q, k, v: cpu.attention(q, k, v), inputs, torch.float32)
    for wanted, mine in zip(results(pytorch, inputs, torch.float64), found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout_p", [0.001, 0.15, 0.5, 0.999])
def test_masks_drop_as_often_as_they_should_and_no_element_with_another(dropout_p: float) -> None:
    torch.manual_seed(1)
    keep, scale = cpu._keep(torch.Size((1000, 403)), dropout_p)
    drop = 1 - keep.double()
    count, rate = drop.numel(), round(dropout_p * 65536) / 65536
    assert scale == pytest.approx(1 / (1 - rate))
    assert abs(drop.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
    centred = (drop - rate) / math.sqrt(rate * (1 - rate))
    for apart in (1, 2, 3, 4, 5, 8, 403):  # four numbers come from one draw
        flat = centred.flatten()
        assert abs((flat[apart:] * flat[:-apart]).mean()) < 5 / math.sqrt(count)
    again = cpu._keep(torch.Size((1000, 403)), dropout_p)[0]
    assert not torch.equal(keep, again)
    torch.manual_seed(1)
    assert torch.equal(keep, cpu._keep(torch.Size((1000, 403)), dropout_p)[0])


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (4, 4), (0,)])
def test_masks_have_any_number_of_elements(shape: tuple[int, ...]) -> None:
    assert cpu._keep(torch.Size(shape), 0.5)[0].shape == shape


def test_dropout_keeps_the_mean_and_passes_the_gradient_of_what_stays() -> None:
    x = torch.ones(400, 300, requires_grad=True)
    y = cpu.dropout(x, 0.2)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert y.unique().tolist() == pytest.approx([0.0, 1.25], rel=1e-4)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert cpu.dropout(x.bfloat16(), 0.2).dtype == torch.bfloat16


def test_what_it_is_for() -> None:
    q, k, v, _ = packed(1, 2, 8, 4, torch.bfloat16)
    assert cpu.suits_attention(q, k, 0.0)
    assert not cpu.suits_attention(q.float(), k.float(), 0.0)
    assert cpu.suits_attention(q.float(), k.float(), 0.1)
    assert not cpu.suits_attention(q[:, :, -1:], k, 0.1), "the last character alone"
    many = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16).expand(65, 4, 512, 8)
    assert cpu.suits_attention(many[:64], many[:64], 0.0)
    assert not cpu.suits_attention(many, many, 0.0)
    assert not cpu.suits_attention(q.to("meta"), k.to("meta"), 0.0)
    assert torch.equal(ops.attention(q, k, v), cpu.attention(q, k, v))

"""The CPU's attention, dropout, layer norm and linear against float64 and against PyTorch's own."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from kernels import ops
from kernels.cpu import ops as cpu
from kernels.cpu.dropout import Masks


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
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3)):
        for wanted, mine in zip(exact, results(cpu.attention, inputs, dtype), strict=True):
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
    for attention in (naive, lambda q, k, v: cpu.attention(q, k, v, dropout_p)):
        torch.manual_seed(7)
        found.append(results(attention, inputs, torch.float64))
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_with_dropout_come_to_what_float64_gives_under_the_same_masks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles, of heads and of rows, the last of each smaller than the others."""
    monkeypatch.setattr(cpu, "ROWS", 32)
    monkeypatch.setattr(cpu, "TILE", 2 * 32 * 70)
    inputs = packed(1, 5, 70, 16, dtype)
    found = []
    for precision in (torch.float64, dtype):
        torch.manual_seed(3)
        found.append(results(lambda q, k, v: cpu.attention(q, k, v, 0.3), inputs, precision))
    for wanted, mine in zip(*found, strict=True):
        assert rms(mine - wanted) <= (2**-7 if dtype == torch.bfloat16 else 1e-5) * rms(wanted)


def test_scores_below_zero_and_far_from_it() -> None:
    """Where an exponential of a score itself would be nothing."""
    q, k, v, d_out = packed(1, 2, 40, 16, torch.bfloat16)
    q, k = q.abs() * 8, -k.abs() * 8
    exact, ours, theirs = (
        results(attention, [q, k, v, d_out], dtype)
        for attention, dtype in (
            (pytorch, torch.float64),
            (cpu.attention, torch.bfloat16),
            (pytorch, torch.bfloat16),
        )
    )
    for wanted, mine, its in zip(exact, ours, theirs, strict=True):
        assert rms(mine - wanted) <= 2 * rms(its - wanted) + 2**-8 * rms(wanted)


@pytest.mark.parametrize("dropout_p", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays_so(sign: float, dropout_p: float) -> None:
    """Also the kind with a negative sign, which processors make."""
    q, k, v, _ = packed(1, 2, 40, 16, torch.bfloat16)
    q = q.clone()
    q[0, 0, 7] = math.copysign(math.nan, sign)
    out = cpu.attention(q, k, v, dropout_p)
    assert out[0, 0, 7].isnan().all()
    assert out.isnan().sum() == 16
    x = torch.zeros(200, 16)
    x[3, 2] = math.copysign(math.nan, sign)
    norm = torch.ones(16), torch.zeros(16)
    _, y = cpu.add_dropout_layer_norm(x, torch.zeros_like(x), *norm, dropout_p)
    assert y[3].isnan().all()


def test_under_autocast_nothing_is_cast() -> None:
    inputs = packed(1, 2, 16, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(lambda q, k, v: cpu.attention(q, k, v), inputs, torch.float32)
    for wanted, mine in zip(results(pytorch, inputs, torch.float64), found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


def joint(
    inputs: list[Tensor], dtypes: tuple[torch.dtype, torch.dtype], function: object, frozen: bool = False
) -> list[Tensor]:
    """Both outputs and the gradients of all inputs of an ``add_dropout_layer_norm``, in float64."""
    residual, x, weight, bias, d_total, d_y = inputs
    wide, narrow = dtypes
    leaves = [residual.to(wide), x.to(narrow), weight.to(wide), bias.to(wide)]
    leaves = [leaf.detach().requires_grad_(not frozen or i < 2) for i, leaf in enumerate(leaves)]
    total, y = function(*leaves)
    assert (total.dtype, y.dtype) == dtypes
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad([total, y], wanted, [d_total.to(wide), d_y.to(narrow)])
    return [found.detach().double() for found in (total, y, *grads)]


def random_joint() -> list[Tensor]:
    torch.manual_seed(0)
    like = [torch.randn(3, 50, 24, dtype=torch.float64) for _ in range(4)]
    return [*(like[:2]), torch.randn(24, dtype=torch.float64), torch.randn(24, dtype=torch.float64), *like[2:]]


@pytest.mark.parametrize("tile", [2**20, 24 * 2 * 40], ids=["at once", "in pieces"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_the_joint_is_that_of_the_formula(dropout_p: float, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    inputs = random_joint()
    rows = tile // 2 // 24

    def naive(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if dropout_p:
            masks = Masks(dropout_p)
            parts = [masks.draw(part.shape) for part in x.reshape(-1, 24).split(rows)]
            x = x * torch.cat(parts).view(x.shape) * masks.scale
        total = residual + x
        mean, variance = total.mean(-1, keepdim=True), total.var(-1, correction=0, keepdim=True)
        return total, (total - mean) / (variance + 1e-5).sqrt() * weight + bias

    def ours(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return cpu.add_dropout_layer_norm(*leaves, dropout_p)

    found = []
    for function in (naive, ours):
        torch.manual_seed(5)
        found.append(joint(inputs, (torch.float64, torch.float64), function))
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)
    exact = found[0]
    for dtypes, tolerance in (
        ((torch.float32, torch.float32), 1e-5),
        ((torch.float32, torch.bfloat16), 2**-7),
    ):
        torch.manual_seed(5)
        for wanted, mine in zip(exact, joint(inputs, dtypes, ours), strict=True):
            assert rms(mine - wanted) <= tolerance * rms(wanted)


def test_the_joint_with_a_frozen_norm_has_the_same_gradients_else() -> None:
    inputs = random_joint()
    both = (torch.float64, torch.float64)
    free = joint(inputs, both, cpu.add_dropout_layer_norm)
    for wanted, mine in zip(free[:4], joint(inputs, both, cpu.add_dropout_layer_norm, frozen=True), strict=True):
        assert torch.equal(mine, wanted)


def test_the_joint_drops_out_the_branch_alone() -> None:
    x = torch.ones(400, 300)
    weight, bias = torch.ones(300), torch.zeros(300)
    total, _ = cpu.add_dropout_layer_norm(torch.full_like(x, 2.0), x, weight, bias, 0.2)
    assert total.unique().tolist() == pytest.approx([2.0, 3.25], rel=1e-4)
    assert float(total.mean()) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("fails", [False, True])
def test_how_products_of_float32_are_read_is_left_as_it_was(fails: bool) -> None:
    settings: Any = torch.backends.mkldnn
    q, k, v, _ = packed(1, 2, 16, 8, torch.bfloat16)
    for precision in ("none", "ieee", "bf16"):
        settings.matmul.fp32_precision = precision
        try:
            with nullcontext() if not fails else pytest.raises(RuntimeError):
                cpu.attention(q, k[:, :, :, :7] if fails else k, v)
            assert settings.matmul.fp32_precision == precision
        finally:
            settings.matmul.fp32_precision = "none"


needs_bfloat16 = pytest.mark.skipif(not cpu.multiplies_bfloat16(), reason="oneDNN has no bfloat16 here")


@needs_bfloat16
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, True, True)], ids=str)
def test_a_linear_errs_no_more_than_twice_what_pytorch_does(trained: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in ((3, 50, 24), (40, 24), (40,))]
    d_y = torch.randn(3, 50, 40, dtype=torch.float64)

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [
            each.bfloat16().to(dtype).requires_grad_(trains) for each, trains in zip(inputs, trained, strict=True)
        ]
        y = function(*leaves)
        grads = torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], d_y.bfloat16().to(dtype))
        return [found.detach().double() for found in (y, *grads)]

    def naive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x @ weight.T + bias

    its = results(torch.nn.functional.linear, torch.bfloat16)
    exact = results(naive, torch.float64)
    for wanted, mine, theirs in zip(exact, results(cpu.linear, torch.bfloat16), its, strict=True):
        assert rms(mine - wanted) <= 2 * rms(theirs - wanted)


@needs_bfloat16
def test_a_linear_keeps_what_is_not_a_number_and_casts_its_weights() -> None:
    x = torch.zeros(2, 8, dtype=torch.bfloat16)
    x[1, 3] = math.nan
    weight, bias = torch.ones(16, 8, requires_grad=True), torch.linspace(-1, 1, 16, requires_grad=True)
    y = cpu.linear(x, weight, bias)
    assert torch.equal(y[0], bias.bfloat16())
    assert y[1].isnan().all()
    y[0].sum().backward()
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32
    assert torch.equal(bias.grad, torch.ones(16))


@needs_bfloat16
def test_a_model_in_bfloat16_has_such_linears_and_a_single_character_has_not() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=5))
    ids = torch.zeros(4, 64, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        many, one = model(ids), model(ids[:1, :1])
    assert ["_Linear" in str(out.grad_fn) for out in (many, one)] == [True, False]
    assert cpu.linear(torch.zeros(0, 3, 8).bfloat16(), torch.ones(4, 8), torch.ones(4)).shape == (0, 3, 4)


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
    rows = torch.zeros(4, 50, 8, dtype=torch.bfloat16)
    assert cpu.suits_linear(rows) == cpu.multiplies_bfloat16()
    assert not cpu.suits_linear(rows.float())
    assert not cpu.suits_linear(rows[:, :1]), "a character in sampling"
    assert not cpu.suits_linear(rows.to("meta"))
    x = torch.zeros(2, 100, 8)
    assert cpu.suits_joint(x, x.bfloat16(), 0.0)
    assert not cpu.suits_joint(x[:, :1], x[:, :1], 0.0), "a character in sampling"
    assert cpu.suits_joint(x[:, :1], x[:, :1], 0.1)
    assert not cpu.suits_joint(x.bfloat16(), x.bfloat16(), 0.1)

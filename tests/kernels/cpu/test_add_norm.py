"""Compare the CPU's sum, dropout and layer norm with the formula in float64."""

import math

import pytest
import torch
from torch import Tensor

from kernels.cpu import add_norm
from kernels.cpu.add_norm import add_dropout_layer_norm, suits
from kernels.cpu.dropout import Masks


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def results(
    inputs: list[Tensor], dtypes: tuple[torch.dtype, torch.dtype], function: object, frozen: bool = False
) -> list[Tensor]:
    """Return both outputs and the gradients of all inputs of an ``add_dropout_layer_norm``, in float64."""
    residual, x, weight, bias, d_total, d_y = inputs
    wide, narrow = dtypes
    leaves = [residual.to(wide), x.to(narrow), weight.to(wide), bias.to(wide)]
    leaves = [leaf.detach().requires_grad_(not frozen or i < 2) for i, leaf in enumerate(leaves)]
    total, y = function(*leaves)
    assert (total.dtype, y.dtype) == dtypes
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad([total, y], wanted, [d_total.to(wide), d_y.to(narrow)])
    return [found.detach().double() for found in (total, y, *grads)]


def random_inputs() -> list[Tensor]:
    torch.manual_seed(0)
    like = [torch.randn(3, 50, 24, dtype=torch.float64) for _ in range(4)]
    return [*(like[:2]), torch.randn(24, dtype=torch.float64), torch.randn(24, dtype=torch.float64), *like[2:]]


@pytest.mark.parametrize("piece", [2**19, 24 * 40], ids=["at once", "in pieces"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_it_is_the_formulas(dropout_p: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_norm, "PIECE", piece)
    inputs = random_inputs()
    rows = piece // 24

    def naive(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if dropout_p:
            masks = Masks(dropout_p)
            parts = [masks.draw(part.shape) for part in x.reshape(-1, 24).split(rows)]
            x = x * torch.cat(parts).view(x.shape) * masks.scale
        total = residual + x
        mean, variance = total.mean(-1, keepdim=True), total.var(-1, correction=0, keepdim=True)
        return total, (total - mean) / (variance + 1e-5).sqrt() * weight + bias

    def ours(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return add_dropout_layer_norm(*leaves, dropout_p)

    found = []
    for function in (naive, ours):
        torch.manual_seed(5)
        found.append(results(inputs, (torch.float64, torch.float64), function))
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)
    exact = found[0]
    for dtypes, tolerance in (
        ((torch.float32, torch.float32), 1e-5),
        ((torch.float32, torch.bfloat16), 2**-7),
    ):
        torch.manual_seed(5)
        for wanted, mine in zip(exact, results(inputs, dtypes, ours), strict=True):
            assert rms(mine - wanted) <= tolerance * rms(wanted)


def test_a_frozen_norm_leaves_the_other_gradients_the_same() -> None:
    inputs = random_inputs()
    both = (torch.float64, torch.float64)
    free = results(inputs, both, add_dropout_layer_norm)
    for wanted, mine in zip(free[:4], results(inputs, both, add_dropout_layer_norm, frozen=True), strict=True):
        assert torch.equal(mine, wanted)


def test_it_drops_out_the_branch_alone() -> None:
    x = torch.ones(400, 300)
    weight, bias = torch.ones(300), torch.zeros(300)
    total, _ = add_dropout_layer_norm(torch.full_like(x, 2.0), x, weight, bias, 0.2)
    assert total.unique().tolist() == pytest.approx([2.0, 3.25], rel=1e-4)
    assert float(total.mean()) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("dropout_p", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays_so(sign: float, dropout_p: float) -> None:
    x = torch.zeros(200, 16)
    x[3, 2] = math.copysign(math.nan, sign)
    norm = torch.ones(16), torch.zeros(16)
    _, y = add_dropout_layer_norm(x, torch.zeros_like(x), *norm, dropout_p)
    assert y[3].isnan().all()


def test_what_it_is_for() -> None:
    x = torch.zeros(2, 100, 8)
    assert suits(x, x.bfloat16(), 0.0)
    assert not suits(x[:, :1], x[:, :1], 0.0), "a character in sampling"
    assert suits(x[:, :1], x[:, :1], 0.1)
    assert not suits(x.bfloat16(), x.bfloat16(), 0.1)

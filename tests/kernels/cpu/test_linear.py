"""Compare the CPU's linear layer in bfloat16 with float64 and with PyTorch's own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from kernels.cpu.linear import linear, multiplies_bfloat16, suits

needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="oneDNN has no bfloat16 here")


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


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
    for wanted, mine, theirs in zip(exact, results(linear, torch.bfloat16), its, strict=True):
        assert rms(mine - wanted) <= 2 * rms(theirs - wanted)


@needs_bfloat16
def test_a_linear_keeps_what_is_not_a_number_and_casts_its_weights() -> None:
    x = torch.zeros(2, 8, dtype=torch.bfloat16)
    x[1, 3] = math.nan
    weight, bias = torch.ones(16, 8, requires_grad=True), torch.linspace(-1, 1, 16, requires_grad=True)
    y = linear(x, weight, bias)
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
    assert linear(torch.zeros(0, 3, 8).bfloat16(), torch.ones(4, 8), torch.ones(4)).shape == (0, 3, 4)


def test_what_it_is_for() -> None:
    rows = torch.zeros(4, 50, 8, dtype=torch.bfloat16)
    assert suits(rows) == multiplies_bfloat16()
    assert not suits(rows.float())
    assert not suits(rows[:, :1]), "a character in sampling"
    assert not suits(rows.to("meta"))

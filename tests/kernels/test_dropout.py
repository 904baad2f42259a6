"""Test which elements a seed drops: the statistics of the mask, and that kernels and reference agree."""

from collections.abc import Iterator

import pytest
import torch

from kernels import backend, ops, reference
from tests.kernels.marks import DEVICE, NEEDS_KERNELS, needs_kernels

ROWS, COLUMNS = 2048, 384
SEEDS = (0, 1, 2**32, 2**62 + 12345)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with DEVICE:
        yield


def standardized(p: float, seed: int) -> torch.Tensor:
    mask = reference.keep_mask(ROWS, COLUMNS, p, torch.tensor([seed])).double()
    return (mask - (1 - p)) / (p * (1 - p)) ** 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_keep_rate_and_correlations(p: float, seed: int) -> None:
    """Each statistic is a sum of about a million draws divided by its deviation; 4.5 occurs once in 150,000."""
    z = standardized(p, seed)
    sums = {"keep rate": z.sum() / z.numel() ** 0.5}
    for step in (1, 2, 3, 4, 8, 16, 32, 64, 128):
        products = z[:, step:] * z[:, :-step]
        sums[f"columns {step} apart"] = products.sum() / products.numel() ** 0.5
    for step in (1, 2, 3, 8, 64, 100, 384, 600, 1024):  # 100: the next head of 100 positions
        products = z[step:] * z[:-step]
        sums[f"rows {step} apart"] = products.sum() / products.numel() ** 0.5
    for other in (seed + 1, seed + 2**32, seed ^ 3):
        sums[f"seed {other}"] = (z * standardized(p, other)).sum() / z.numel() ** 0.5
    assert {name: float(value) for name, value in sums.items() if abs(value) > 4.5} == {}


def test_no_two_rows_of_any_two_seeds_agree() -> None:
    """Seeds that differ in one bit must not give the same rows in another order."""
    rows = torch.cat([reference.keep_mask(ROWS, COLUMNS, 0.5, torch.tensor([seed])) for seed in range(8)])
    assert len(rows.unique(dim=0)) == len(rows)


def test_row_sums_and_column_sums_spread_as_independent_draws_do() -> None:
    z = standardized(0.2, 5)
    for axis, draws in ((1, ROWS), (0, COLUMNS)):
        sums = z.sum(axis) / z.shape[axis] ** 0.5
        assert float(sums.var()) == pytest.approx(1, abs=5 * (2 / draws) ** 0.5)


@pytest.mark.parametrize("p", [0.001, 0.999])
def test_rates_near_0_and_1(p: float) -> None:
    mask = reference.keep_mask(ROWS, COLUMNS, p, torch.tensor([3]))
    assert float(mask.double().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p) / mask.numel()) ** 0.5)


@pytest.mark.parametrize("seed", [torch.tensor([1], dtype=torch.int32), torch.tensor(1), torch.tensor([1, 2])])
def test_a_seed_of_another_shape_or_dtype(seed: torch.Tensor) -> None:
    x = torch.zeros(1, 1, 2, 16)
    with pytest.raises(ValueError, match="seed"):
        ops.attention(x, x, x, 0.1, seed)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_dropout_probability_outside_its_range_is_refused(p: float) -> None:
    x = torch.zeros(1, 1, 2, 16)
    with pytest.raises(ValueError, match="dropout_p"):
        ops.attention(x, x, x, p)
    with pytest.raises(ValueError, match="dropout_p"):
        ops.add_dropout_layer_norm(x, x, x[0, 0, 0], x[0, 0, 0], p)


@pytest.mark.parametrize("name", [pytest.param("triton", marks=NEEDS_KERNELS), "reference"])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.99])
def test_attention_drops_the_seeds_weights_forward_and_backward(name: str, p: float) -> None:
    """With equal scores and the identity as v, the output is the dropped weights themselves, and so is v's gradient."""
    time, seed = 40, torch.tensor([99])
    q = torch.zeros(2, 3, time, 64)
    v = torch.eye(time, 64).expand(2, 3, time, 64).clone().requires_grad_()
    with backend.force(name):
        out = ops.attention(q, q, v, p, seed)
        out.backward(torch.eye(time, 64).expand_as(out))
    mask = (
        reference.keep_mask(2 * 3 * time, time, p, seed).view(2, 3, time, time) if p else torch.ones(2, 3, time, time)
    )
    weights = torch.ones(time, time).tril() / torch.arange(1, time + 1)[:, None] * mask / (1 - p)
    torch.testing.assert_close(out[..., :time], weights, atol=1e-6, rtol=1e-6)
    assert v.grad is not None
    torch.testing.assert_close(v.grad[..., :time], weights.transpose(2, 3), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("triton", marks=NEEDS_KERNELS), "reference"])
def test_add_norm_drops_the_seeds_elements_forward_and_backward(name: str) -> None:
    seed = torch.tensor([2**61])
    x = torch.ones(11, 3, 48, requires_grad=True)
    residual = torch.zeros_like(x).requires_grad_()
    with backend.force(name):
        total, norm = ops.add_dropout_layer_norm(residual, x, torch.ones(48), torch.zeros(48), 0.2, seed)
        torch.autograd.backward([total, norm], [torch.ones_like(total), torch.zeros_like(norm)])
    expected = reference.keep_mask(33, 48, 0.2, seed).view_as(x) * 1.25
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(residual.grad, torch.ones_like(x))


@needs_kernels
def test_without_dropout_a_seed_changes_nothing() -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 16)
    with backend.force("triton"):
        assert torch.equal(ops.attention(q, k, v, 0.0, torch.tensor([1])), ops.attention(q, k, v))


@needs_kernels
def test_each_call_without_a_seed_draws_one_from_torchs_generator() -> None:
    q = torch.zeros(1, 1, 30, 16)
    v = torch.ones(1, 1, 30, 16)
    with backend.force("triton"):
        torch.manual_seed(0)
        first, second = ops.attention(q, q, v, 0.5), ops.attention(q, q, v, 0.5)
        torch.manual_seed(0)
        assert torch.equal(ops.attention(q, q, v, 0.5), first)
    assert not torch.equal(first, second)


@needs_kernels
def test_one_draw_serves_all_ops_of_a_step() -> None:
    q, v = torch.zeros(1, 1, 30, 16), torch.ones(1, 1, 30, 16)
    x, norm = torch.ones(20, 16), (torch.ones(16), torch.zeros(16))
    torch.manual_seed(0)
    seeds = ops.draw_seeds(3, torch.get_default_device())
    with backend.force("triton"):
        expected = [ops.attention(q, q, v, 0.5, seeds[:1]), ops.add_dropout_layer_norm(x, x, *norm, 0.5, seeds[1:2])[0]]
        state = torch.get_rng_state()
        with ops.seeds_from(seeds):
            found = [ops.attention(q, q, v, 0.5), ops.add_dropout_layer_norm(x, x, *norm, 0.5)[0]]
            assert torch.equal(ops.attention(q, q, v), v), "without dropout no seed is taken"
            third = ops.attention(q, q, v, 0.5)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(third, ops.attention(q, q, v, 0.5, seeds[2:]))
        assert not torch.equal(ops.attention(q, q, v, 0.5), third), "behind it each op draws its own again"

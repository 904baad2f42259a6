"""Test rotary positions beyond accuracy: NaN, layouts, tables that begin in the middle."""

import pytest
import torch

from kernels import backend, ops
from tests.kernels.marks import NEEDS_KERNELS, random

pytestmark = [*NEEDS_KERNELS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy's, about NaN


def reference(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with backend.force("pytorch"):
        return ops.rotary(qkv, cos, sin)


def test_nan_comes_out_as_nan_and_stays_in_its_pair() -> None:
    qkv = random(1, 4, 3, 2, 16)
    qkv[0, 2, 0, 1, 3] = torch.nan
    q, k, v = ops.rotary(qkv, random(4, 8), random(4, 8, seed=1))
    assert q.isnan().nonzero().tolist() == [[0, 1, 2, 3], [0, 1, 2, 11]]
    assert k.isfinite().all()
    assert v.isfinite().all()


def test_nan_in_a_gradient_comes_out_as_nan() -> None:
    qkv = random(1, 4, 3, 2, 16).requires_grad_()
    d_k = torch.zeros(1, 2, 4, 16)
    d_k[0, 0, 1, 8] = torch.nan
    ops.rotary(qkv, random(4, 8), random(4, 8, seed=1))[1].backward(d_k)
    assert qkv.grad is not None
    assert qkv.grad.isnan().nonzero().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 8]]


def test_results_lie_as_attention_reads_them_without_a_copy() -> None:
    q, k, v = ops.rotary(random(2, 5, 3, 2, 16), random(5, 8), random(5, 8))
    assert all(x.transpose(1, 2).is_contiguous() for x in (q, k, v))


@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_qkv_of_any_strides_and_tables_from_the_middle(layout: str) -> None:
    qkv = random(2, 9, 3, 2, 20)[:, 2:7] if layout == "sliced" else random(5, 2, 3, 2, 20).transpose(0, 1)
    tables = random(30, 10)[11:16], random(30, 10, seed=1)[11:16]
    for one, other in zip(ops.rotary(qkv, *tables), reference(qkv, *tables), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_any_strides() -> None:
    leaves = [random(2, 5, 3, 2, 20).requires_grad_() for _ in range(2)]
    tables = random(5, 10), random(5, 10, seed=1)
    for leaf, function in zip(leaves, (ops.rotary, reference), strict=True):
        q, k, v = function(leaf, *tables)
        (q.transpose(2, 3) * random(2, 2, 20, 5)).sum().backward(retain_graph=True)
        (k + v).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_heads_wider_than_the_kernels_take() -> None:
    qkv, tables = random(1, 3, 3, 1, 160), (random(3, 80), random(3, 80, seed=1))
    for one, other in zip(ops.rotary(qkv, *tables), reference(qkv, *tables), strict=True):
        assert torch.equal(one, other)

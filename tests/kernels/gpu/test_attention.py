"""Test attention beyond accuracy: NaN, extremes, causality, layouts, the same bits every time."""

import pytest
import torch
import torch.nn.functional as F

from kernels import ops, reference
from tests.kernels.marks import NEEDS_KERNELS, random

pytestmark = [*NEEDS_KERNELS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy's, about NaN


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("row", [0, 36])
def test_nan_comes_out_as_nan(where: str, row: int) -> None:
    inputs = dict(zip("qkv", random(3, 1, 1, 37, 16), strict=True))
    inputs[where][0, 0, row, 3] = torch.nan
    out = ops.attention(**inputs)
    assert out[0, 0, row].isnan().any()
    assert out[0, 0, -1].isnan().any() or where == "q"


def test_nan_in_a_gradient_comes_out_as_nan() -> None:
    q, k, v = (x.requires_grad_() for x in random(3, 1, 1, 37, 16))
    gradient = torch.zeros(1, 1, 37, 16)
    gradient[0, 0, 20, 0] = torch.nan
    ops.attention(q, k, v).backward(gradient)
    assert all(x.grad is not None and x.grad.isnan().any() for x in (q, k, v))


def test_a_later_character_never_changes_an_earlier_result() -> None:
    q, k, v = random(3, 1, 2, 70, 32)
    before = ops.attention(q, k, v)
    for x in (q, k, v):
        x[:, :, 50:] = 1e4
    assert torch.equal(ops.attention(q, k, v)[:, :, :50], before[:, :, :50])


def test_scores_far_from_zero() -> None:
    """With one enormous score in a row, or many equal ones, the softmax neither overflows nor loses its sum."""
    q = torch.full((1, 1, 66, 16), 100.0)
    k = torch.zeros(1, 1, 66, 16)
    k[0, 0, 5] = 100.0
    v = random(1, 1, 66, 16)
    out = ops.attention(q, k, v)
    torch.testing.assert_close(out[0, 0, 5:], v[0, 0, 5].expand(61, 16))
    torch.testing.assert_close(out[0, 0, :5], v[0, 0, :5].cumsum(0) / torch.arange(1, 6)[:, None])


def test_results_lie_as_the_projection_reads_them() -> None:
    q, k, v = random(2, 20, 3, 4, 16).permute(2, 0, 3, 1, 4)
    out = ops.attention(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    assert out.transpose(1, 2).reshape(2, 20, 64).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("strides", ["permuted", "expanded", "sliced", "last not 1"])
def test_it_takes_any_strides(strides: str) -> None:
    x = random(3, 2, 2, 33, 24)
    if strides == "permuted":
        q, k, v = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif strides == "expanded":
        q, k, v = x[:, :1].expand(3, 2, 2, 33, 24)
    elif strides == "sliced":
        q, k, v = x[..., 1:18], x[..., 3:20], x[..., 7:24]
        q, k, v = q[0], k[1], v[2]
    else:
        q, k, v = x.transpose(3, 4).contiguous().transpose(3, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.attention(q, k, v), expected, atol=2e-6, rtol=1e-5)


def test_a_cache_with_other_strides_than_q() -> None:
    """As in a prefill, q is a view of packed q, k and v, and keys and values are views of a longer cache."""
    q = random(2, 20, 3, 2, 16).permute(2, 0, 3, 1, 4)[0]
    k, v = random(2, 2, 2, 50, 16, seed=1)[..., :20, :]
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.attention(q, k, v), expected, atol=2e-6, rtol=1e-5)


def test_float64_is_computed_in_float64() -> None:
    q, k, v = random(3, 1, 2, 9, 16).double()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.attention(q, k, v), expected, atol=1e-14, rtol=1e-14)


def test_one_query_over_a_cache_sees_every_key() -> None:
    q, k, v = random(1, 2, 1, 16), random(1, 2, 30, 16, seed=1), random(1, 2, 30, 16, seed=2)
    torch.testing.assert_close(ops.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_one_query_with_dropout_sees_every_key_that_its_seed_keeps() -> None:
    q, v = torch.zeros(1, 1, 1, 32), torch.eye(30, 32)[None, None]
    seed = torch.tensor([3])
    expected = reference.keep_mask(1, 30, 0.4, seed)[0] / 30 / 0.6
    torch.testing.assert_close(ops.attention(q, v, v, 0.4, seed)[0, 0, 0, :30], expected)


def test_heads_wider_than_the_kernels_take() -> None:
    q, k, v = random(3, 1, 1, 10, 160)
    torch.testing.assert_close(ops.attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_gradients_are_the_same_bits_every_time() -> None:
    def gradients() -> list[torch.Tensor]:
        leaves = [x.requires_grad_() for x in random(3, 1, 2, 70, 32)]
        ops.attention(*leaves, 0.2, torch.tensor([4])).backward(random(1, 2, 70, 32, seed=1))
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    assert all(map(torch.equal, gradients(), gradients()))


def test_an_empty_batch() -> None:
    q = torch.zeros(0, 2, 5, 16)
    assert ops.attention(q, q, q).shape == q.shape

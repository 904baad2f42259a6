"""What a kernel must do besides being accurate: NaN, extremes, causality, layouts, the same bits every time."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from kernels import backend, ops, reference
from tests.kernels.gpu import DEVICE, NEEDS_KERNELS

pytestmark = [*NEEDS_KERNELS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # of NumPy, about NaN


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with backend.force("triton"), DEVICE:
        yield


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("row", [0, 36])
def test_nan_in_attention_comes_out_as_nan(where: str, row: int) -> None:
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


def test_nan_in_the_other_ops_comes_out_as_nan() -> None:
    x, weight, bias = random(5, 48), torch.ones(48), torch.zeros(48)
    x[2, 7] = torch.nan
    finite = torch.tensor([True, True, False, True, True])
    assert torch.equal(ops.layer_norm(x, weight, bias).isfinite().all(1), finite)
    for residual, branch in ((x, random(5, 48)), (random(5, 48), x)):
        total, norm = ops.add_dropout_layer_norm(residual, branch, weight, bias)
        assert torch.equal(total.isfinite().all(1), finite)
        assert torch.equal(norm.isfinite().all(1), finite)
    assert ops.cross_entropy(x, torch.zeros(5, dtype=torch.int64)).isnan()


def test_nan_in_the_other_ops_gradients_comes_out_as_nan() -> None:
    residual, x, logits = (t.requires_grad_() for t in (random(5, 48), random(5, 48, seed=1), random(5, 48, seed=2)))
    weight = torch.ones(48, requires_grad=True)
    gradient = torch.zeros(5, 48)
    gradient[2, 7] = torch.nan
    torch.autograd.backward(
        ops.add_dropout_layer_norm(residual, x, weight, torch.zeros(48)), [torch.zeros(5, 48), gradient]
    )
    ops.cross_entropy(logits, torch.arange(5)).backward(torch.tensor(torch.nan))
    found = [t.grad.isnan().any() for t in (residual, x, weight, logits) if t.grad is not None]
    assert len(found) == 4
    assert all(found)


def test_a_later_character_never_changes_an_earlier_result() -> None:
    q, k, v = random(3, 1, 2, 70, 32)
    before = ops.attention(q, k, v)
    for x in (q, k, v):
        x[:, :, 50:] = 1e4
    assert torch.equal(ops.attention(q, k, v)[:, :, :50], before[:, :, :50])


def test_scores_far_from_zero() -> None:
    """Rows of one enormous score, and of many equal ones: the softmax neither overflows nor loses its sum."""
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
def test_attention_takes_any_strides(strides: str) -> None:
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
    """As in a prefill: q is a view of packed q, k, v, the keys and values views of a cache that is longer."""
    q = random(2, 20, 3, 2, 16).permute(2, 0, 3, 1, 4)[0]
    k, v = random(2, 2, 2, 50, 16, seed=1)[..., :20, :]
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ops.attention(q, k, v), expected, atol=2e-6, rtol=1e-5)


def test_weights_of_any_stride() -> None:
    x, weight, bias = random(5, 48), random(96)[::2], random(96, seed=1)[1::2]
    torch.testing.assert_close(ops.layer_norm(x, weight, bias), F.layer_norm(x, (48,), weight, bias))


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


def test_layer_norm_of_rows_that_are_constant_or_far_from_zero() -> None:
    x = torch.stack([torch.full((384,), 7.0), 1e4 + random(384)])
    expected = F.layer_norm(x.double(), (384,)).float()
    torch.testing.assert_close(ops.layer_norm(x, torch.ones(384), torch.zeros(384)), expected, atol=2e-3, rtol=1e-3)


def test_what_is_normalised_is_the_residual_as_it_was_rounded() -> None:
    residual, x = random(4, 32).half(), random(4, 32, seed=1).half()
    total, norm = ops.add_dropout_layer_norm(residual, x, torch.ones(32), torch.zeros(32))
    assert total.dtype == norm.dtype == torch.float16
    torch.testing.assert_close(norm, F.layer_norm(total.float(), (32,)).half(), atol=1e-3, rtol=1e-3)


def test_a_residual_that_nothing_reads_gets_no_gradient_of_its_own() -> None:
    """As at the last joint of a model, whose sum only the norm reads."""
    residual, x = (t.requires_grad_() for t in random(2, 6, 32))
    weight = torch.ones(32, requires_grad=True)
    ops.add_dropout_layer_norm(residual, x, weight, torch.zeros(32))[1].sum().backward()
    plain = (residual.detach() + x.detach()).requires_grad_()
    F.layer_norm(plain, (32,)).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(residual.grad, x.grad)


@pytest.mark.parametrize("vocab", [3, 87, 9000])
def test_cross_entropy_of_minus_infinity_and_of_enormous_logits(vocab: int) -> None:
    logits = 1e4 * random(4, vocab)
    logits[0, : vocab - 1] = -torch.inf  # for 9,000 symbols, two whole blocks of nothing else
    targets = torch.tensor([vocab - 1, 0, 1, 2])
    leaf, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = ops.cross_entropy(leaf, targets), F.cross_entropy(plain, targets)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(leaf.grad, plain.grad)


def test_cross_entropy_ignores_rows_and_any_index_can_be_the_one() -> None:
    logits = random(6, 10)
    logits[1] = torch.nan  # an ignored row may hold anything
    for ignore_index in (-100, -1, 3):
        leaf = logits.clone().requires_grad_()
        targets = torch.tensor([0, ignore_index, 4, 5, ignore_index, 6])
        loss = ops.cross_entropy(leaf, targets, ignore_index)
        loss.backward()
        torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2, 3, 5]], targets[[0, 2, 3, 5]]))
        assert leaf.grad is not None
        assert not leaf.grad[[1, 4]].any()


def test_cross_entropy_without_a_row_that_counts_is_nan_as_pytorchs() -> None:
    assert ops.cross_entropy(random(2, 5), torch.tensor([-100, -100])).isnan()


@pytest.mark.parametrize("target", [-1, 5, 2**40])
def test_a_target_outside_the_vocabulary_reads_nothing_and_gives_nan(target: int) -> None:
    assert ops.cross_entropy(random(2, 5), torch.tensor([0, target])).isnan()


def test_logits_with_padded_rows() -> None:
    padded = random(6, 96)
    targets = torch.arange(6)
    torch.testing.assert_close(ops.cross_entropy(padded[:, :87], targets), F.cross_entropy(padded[:, :87], targets))


def test_gradients_are_the_same_bits_every_time() -> None:
    def gradients() -> list[torch.Tensor]:
        leaves = [x.requires_grad_() for x in (random(300, 48), random(300, 48, seed=1), torch.ones(48))]
        seed = torch.tensor([4])
        torch.autograd.backward(
            ops.add_dropout_layer_norm(*leaves, torch.zeros(48), 0.2, seed), list(random(2, 300, 48, seed=2))
        )
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    assert all(map(torch.equal, gradients(), gradients()))


def test_attentions_gradients_are_the_same_bits_every_time() -> None:
    def gradients() -> list[torch.Tensor]:
        leaves = [x.requires_grad_() for x in random(3, 1, 2, 70, 32)]
        ops.attention(*leaves, 0.2, torch.tensor([4])).backward(random(1, 2, 70, 32, seed=1))
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    assert all(map(torch.equal, gradients(), gradients()))


def test_channels_wider_than_the_kernels_take() -> None:
    x = random(2, 2100)
    weight, bias = torch.ones(2100), torch.zeros(2100)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias), F.layer_norm(x, (2100,)))
    torch.testing.assert_close(ops.add_dropout_layer_norm(x, x, weight, bias)[0], 2 * x)


@pytest.mark.parametrize("name", ["triton", "reference", "auto"])
def test_shapes_and_dtypes_that_do_not_fit_are_refused_on_every_backend(name: str) -> None:
    """A kernel would read and write outside of its tensors."""
    x, heads, weight = random(2, 3, 16), random(1, 2, 9, 16), torch.ones(16)
    targets = torch.zeros(6, dtype=torch.int64)
    with backend.force(name):
        for q, k, v in (
            (heads, heads, heads[..., :8]),
            (heads, heads[:, :, :5], heads[:, :, :5]),
            (heads, heads[:, :1], heads[:, :1]),
            (heads, heads.half(), heads.half()),
        ):
            with pytest.raises(ValueError, match="q, k and v"):
                ops.attention(q, k, v)
        for args in ((x, weight[:8], weight), (x, weight, weight[:1])):
            with pytest.raises(ValueError, match="x, weight and bias"):
                ops.layer_norm(*args)
        with pytest.raises(ValueError, match="x, weight and bias"):
            ops.add_dropout_layer_norm(x, x, weight[:8], weight[:8])
        with pytest.raises(ValueError, match="residual and x"):
            ops.add_dropout_layer_norm(x[0], x, weight, weight)
        for logits, wrong in ((x[0], targets), (x, targets), (random(6, 4), targets.int())):
            with pytest.raises(ValueError, match="logits and targets"):
                ops.cross_entropy(logits, wrong)


def test_a_norm_that_nothing_reads() -> None:
    residual, x = (t.requires_grad_() for t in (random(6, 32), random(6, 32, seed=1)))
    ops.add_dropout_layer_norm(residual, x, torch.ones(32), torch.zeros(32))[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(6, 32))
    torch.testing.assert_close(residual.grad, torch.ones(6, 32))


def test_an_empty_batch() -> None:
    q = torch.zeros(0, 2, 5, 16)
    assert ops.attention(q, q, q).shape == q.shape
    assert ops.layer_norm(torch.zeros(0, 32), torch.ones(32), torch.zeros(32)).shape == (0, 32)

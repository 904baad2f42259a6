"""Test the layer norms beyond accuracy: NaN, extremes, strides, the same bits every time."""

import pytest
import torch
import torch.nn.functional as F

from kernels import ops
from tests.kernels.marks import NEEDS_KERNELS, random

pytestmark = [*NEEDS_KERNELS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy's, about NaN


def test_nan_comes_out_as_nan() -> None:
    x, weight, bias = random(5, 48), torch.ones(48), torch.zeros(48)
    x[2, 7] = torch.nan
    finite = torch.tensor([True, True, False, True, True])
    assert torch.equal(ops.layer_norm(x, weight, bias).isfinite().all(1), finite)
    for residual, branch in ((x, random(5, 48)), (random(5, 48), x)):
        total, norm = ops.add_dropout_layer_norm(residual, branch, weight, bias)
        assert torch.equal(total.isfinite().all(1), finite)
        assert torch.equal(norm.isfinite().all(1), finite)


def test_nan_in_a_gradient_comes_out_as_nan() -> None:
    residual, x = (t.requires_grad_() for t in (random(5, 48), random(5, 48, seed=1)))
    weight = torch.ones(48, requires_grad=True)
    gradient = torch.zeros(5, 48)
    gradient[2, 7] = torch.nan
    torch.autograd.backward(
        ops.add_dropout_layer_norm(residual, x, weight, torch.zeros(48)), [torch.zeros(5, 48), gradient]
    )
    assert all(t.grad is not None and t.grad.isnan().any() for t in (residual, x, weight))


def test_weights_of_any_stride() -> None:
    x, weight, bias = random(5, 48), random(96)[::2], random(96, seed=1)[1::2]
    torch.testing.assert_close(ops.layer_norm(x, weight, bias), F.layer_norm(x, (48,), weight, bias))


def test_rows_that_are_constant_or_far_from_zero() -> None:
    x = torch.stack([torch.full((384,), 7.0), 1e4 + random(384)])
    expected = F.layer_norm(x.double(), (384,)).float()
    torch.testing.assert_close(ops.layer_norm(x, torch.ones(384), torch.zeros(384)), expected, atol=2e-3, rtol=1e-3)


def test_what_is_normalised_is_the_residual_as_it_was_rounded() -> None:
    residual, x = random(4, 32).half(), random(4, 32, seed=1).half()
    total, norm = ops.add_dropout_layer_norm(residual, x, torch.ones(32), torch.zeros(32))
    assert total.dtype == norm.dtype == torch.float16
    torch.testing.assert_close(norm, F.layer_norm(total.float(), (32,)).half(), atol=1e-3, rtol=1e-3)


def test_a_residual_that_nothing_reads_gets_no_gradient_of_its_own() -> None:
    """This happens after the last branch of a model, whose sum only the norm reads."""
    residual, x = (t.requires_grad_() for t in random(2, 6, 32))
    weight = torch.ones(32, requires_grad=True)
    ops.add_dropout_layer_norm(residual, x, weight, torch.zeros(32))[1].sum().backward()
    plain = (residual.detach() + x.detach()).requires_grad_()
    F.layer_norm(plain, (32,)).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(residual.grad, x.grad)


def test_a_norm_that_nothing_reads() -> None:
    residual, x = (t.requires_grad_() for t in (random(6, 32), random(6, 32, seed=1)))
    ops.add_dropout_layer_norm(residual, x, torch.ones(32), torch.zeros(32))[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(6, 32))
    torch.testing.assert_close(residual.grad, torch.ones(6, 32))


def test_gradients_are_the_same_bits_every_time() -> None:
    def gradients() -> list[torch.Tensor]:
        leaves = [x.requires_grad_() for x in (random(300, 48), random(300, 48, seed=1), torch.ones(48))]
        seed = torch.tensor([4])
        torch.autograd.backward(
            ops.add_dropout_layer_norm(*leaves, torch.zeros(48), 0.2, seed), list(random(2, 300, 48, seed=2))
        )
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    assert all(map(torch.equal, gradients(), gradients()))


def test_channels_wider_than_the_kernels_take() -> None:
    x = random(2, 2100)
    weight, bias = torch.ones(2100), torch.zeros(2100)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias), F.layer_norm(x, (2100,)))
    torch.testing.assert_close(ops.add_dropout_layer_norm(x, x, weight, bias)[0], 2 * x)


def test_no_rows() -> None:
    assert ops.layer_norm(torch.zeros(0, 32), torch.ones(32), torch.zeros(32)).shape == (0, 32)

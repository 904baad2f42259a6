"""Compare the plain ops with formulas in float64."""

import math

import pytest
import torch

from kernels import ops


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(q)
    for t in range(q.shape[2]):
        scores = torch.stack([(q[:, :, t] * k[:, :, s]).sum(-1) for s in range(t + 1)], -1) / math.sqrt(q.shape[3])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out[:, :, t] = sum(weights[..., s, None] * v[:, :, s] for s in range(t + 1))
    return out


@pytest.mark.parametrize("time", [1, 5, 33])
def test_attention_is_causal_softmax_attention(time: int) -> None:
    q, k, v = torch.randn(3, 2, 3, time, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.attention(q, k, v), naive_attention(q, k, v), atol=1e-12, rtol=1e-12)


def test_attention_dropout_drops_that_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(64, 4, 32, 16)
    v = torch.ones(64, 4, 32, 16)
    out = ops.attention(q, k, v, dropout_p=0.25)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    # The first query sees only one key, so its output is 0 or 1 / (1 - p).
    first = out[:, :, 0, 0]
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.1)
    assert first[first != 0].unique().item() == pytest.approx(4 / 3)


def test_rotary_positions_are_multiplications_of_complex_numbers() -> None:
    qkv = torch.randn(2, 7, 3, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    angles = torch.linspace(0, 50, 7 * 8, dtype=torch.float64).view(7, 8)

    def naive(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 1, 3)
        rotated = torch.complex(x[..., :8], x[..., 8:]) * turn
        return torch.cat([rotated.real, rotated.imag], -1)

    turn = torch.polar(torch.ones_like(angles), angles)
    expected = [naive(qkv[:, :, 0], turn), naive(qkv[:, :, 1], turn), qkv[:, :, 2].transpose(1, 2)]
    found = ops.rotary(qkv, angles.cos(), angles.sin())
    gradients = list(torch.randn(3, *found[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    d_qkv, expected_d_qkv = (torch.autograd.grad(outputs, qkv, gradients)[0] for outputs in (found, expected))
    for one, other in zip([*found, d_qkv], [*expected, expected_d_qkv], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_layer_norm_and_the_fused_add_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    residual, x = torch.randn(2, 4, 7, 48, dtype=torch.float64, generator=generator)
    weight, bias = torch.randn(2, 48, dtype=torch.float64, generator=generator)
    total = residual + x
    centred = total - total.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(ops.layer_norm(total, weight, bias), expected, atol=1e-12, rtol=1e-12)
    new_residual, norm = ops.add_dropout_layer_norm(residual, x, weight, bias)
    torch.testing.assert_close(new_residual, total, atol=0, rtol=0)
    torch.testing.assert_close(norm, expected, atol=1e-12, rtol=1e-12)


def test_add_norm_drops_the_branch_and_never_the_residual() -> None:
    torch.manual_seed(0)
    residual, x = torch.full((200, 48), 10.0), torch.ones(200, 48)
    total, _ = ops.add_dropout_layer_norm(residual, x, torch.ones(48), torch.zeros(48), dropout_p=0.2)
    assert total.unique().tolist() == pytest.approx([10.0, 11.25], rel=1e-6)
    assert (total == 10).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_cross_entropy_is_the_mean_negative_log_softmax_in_float32() -> None:
    logits = torch.randn(50, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(50) % 11
    expected = -(logits.exp() / logits.exp().sum(-1, keepdim=True)).log()[torch.arange(50), targets].mean()
    torch.testing.assert_close(ops.cross_entropy(logits, targets), expected, atol=1e-12, rtol=1e-12)
    assert ops.cross_entropy(logits.bfloat16(), targets).dtype == torch.float32

"""Every op in plain PyTorch: its meaning, and the fallback where no kernel runs.

Shapes: B batch, H heads, T time, D head width, C channels, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: (B, H, T, D), or (B, H, 1, D) for the last position alone, which sees every key.
        k, v: (B, H, T, D), in q's dtype. Scores are scaled by ``D ** -0.5``.
        dropout_p: probability of dropping an attention weight; survivors are scaled by ``1 / (1 - dropout_p)``.

    Returns:
        The shape and dtype of ``q``.
    """
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=q.shape[2] > 1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalisation over the last dimension (Ba et al. 2016).

    Args:
        x: (..., C). weight, bias: (C,). eps: added to the variance.

    Returns:
        (..., C).
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_dropout_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float = 0.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum: the joint between two branches of a pre-LN block.

    Args:
        residual, x: (..., C); ``x`` is the branch, dropped out with probability ``dropout_p`` before the sum.
        weight, bias: (C,) of the layer norm that the next branch reads through.

    Returns:
        The new residual and its layer norm, both (..., C).
    """
    residual = residual + F.dropout(x, dropout_p, training=dropout_p > 0.0)
    return residual, layer_norm(residual, weight, bias, eps)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean softmax cross-entropy in nats, computed in float32.

    Args:
        logits: (N, V), any floating dtype. targets: (N,) int64 in [0, V).

    Returns:
        A float32 scalar (float64 for float64 logits).
    """
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)

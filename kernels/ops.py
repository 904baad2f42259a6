"""The public ops: every model and trainer calls these, never a backend by name.

``kernels.backend`` decides when an op runs a Triton kernel, through ``kernels.custom_ops``, and when plain PyTorch.

A dropout seed is a tensor of one int64, so that drawing it does not wait for a GPU; the same seed drops the same
elements in the forward and in the backward pass, on every backend.

Shapes: B batch, H heads, T time, D head width, N rows, C channels, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import custom_ops, reference
from kernels.backend import runs_registered_op
from kernels.cpu import add_norm as cpu_add_norm
from kernels.cpu import attention as cpu_attention
from kernels.cpu import linear as cpu_linear

__all__ = [
    "add_dropout_layer_norm",
    "attention",
    "cross_entropy",
    "draw_seeds",
    "layer_norm",
    "linear",
    "rotary",
    "seeds_from",
]

MAX_HEAD_WIDTH = 128
MAX_CHANNELS = 2048  # a kernel keeps a row in registers; wider rows go to PyTorch

_seeds: Iterator[Tensor] | None = None


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """Compute causal scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: (B, H, T, D), or (B, H, 1, D) for the last position alone, which sees every key. Any strides; packed ones,
            such as views of a (B, T, 3, H, D), are read without a copy.
        k, v: (B, H, T, D), in q's dtype: float32, float16 or bfloat16. Scores are scaled by ``D ** -0.5``.
        dropout_p: probability, below 1, of dropping an attention weight; survivors are scaled by
            ``1 / (1 - dropout_p)``.
        seed: (1,) int64, which decides what weights are dropped. None draws one.

    Returns:
        The attention, in the shape and dtype of ``q``; a kernel's result is stored as (B, T, H, D).

    Raises:
        ValueError: for shapes or dtypes that do not fit, or a ``dropout_p`` outside [0, 1).
    """
    _check_dropout(dropout_p, seed)
    fits = q.shape[2] in (1, k.shape[2]) and (*q.shape[:2], q.shape[3]) == (*k.shape[:2], k.shape[3])
    if not (fits and k.shape == v.shape and q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k and v do not fit: {_about(q)}, {_about(k)}, {_about(v)}")
    whole = q.shape == k.shape and q.shape[3] <= MAX_HEAD_WIDTH
    if not (whole and runs_registered_op("attention", q)):
        if seed is None and cpu_attention.suits(q, k, dropout_p):
            return cpu_attention.attention(q, k, v, dropout_p)
        return reference.attention(q, k, v, dropout_p, seed)
    out: Tensor = custom_ops.attention(q, k, v, dropout_p, _seed(q, dropout_p, seed))[0]
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Apply layer normalisation over the last dimension (Ba et al. 2016).

    Args:
        x: (..., C). weight, bias: (C,). eps: added to the variance.

    Returns:
        (..., C) in x's dtype, computed in float32.

    Raises:
        ValueError: for shapes that do not fit.
    """
    _check_norm(x, weight, bias)
    if x.shape[-1] > MAX_CHANNELS or not runs_registered_op("layer_norm", x):
        return reference.layer_norm(x, weight, bias, eps)
    y: Tensor = custom_ops.layer_norm(x, weight, bias, eps)[0]
    return y


def add_dropout_layer_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum, as between two branches of a pre-LN block.

    Args:
        residual, x: (..., C); ``x`` is the branch, dropped out with probability ``dropout_p`` before the sum. Under
            autocast the stream is float32 and the branch 16 bits wide.
        weight, bias: (C,), of the layer norm at the start of the next branch.
        seed: (1,) int64, which decides what elements are dropped. None draws one.

    Returns:
        The new residual, in residual's dtype, and its layer norm, in x's dtype; both (..., C).

    Raises:
        ValueError: for shapes that do not fit, or a ``dropout_p`` outside [0, 1).
    """
    _check_dropout(dropout_p, seed)
    _check_norm(x, weight, bias)
    if residual.shape != x.shape:
        raise ValueError(f"residual and x do not fit: {_about(residual)}, {_about(x)}")
    if x.shape[-1] > MAX_CHANNELS or not runs_registered_op("add_dropout_layer_norm", x):
        if seed is None and cpu_add_norm.suits(residual, x, dropout_p):
            return cpu_add_norm.add_dropout_layer_norm(residual, x, weight, bias, dropout_p, eps)
        return reference.add_dropout_layer_norm(residual, x, weight, bias, dropout_p, seed, eps)
    total, y, _, _ = custom_ops.add_dropout_layer_norm(
        residual, x, weight, bias, dropout_p, _seed(x, dropout_p, seed), eps
    )
    return total, y


def rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split queries, keys and values, and rotate the first two by their positions (Su et al. 2021).

    Args:
        qkv: (B, T, 3, H, D), D even.
        cos, sin: (T, D / 2) float32, of the angle by which each position rotates each pair of channels; the channels of
            a pair are half of D apart. They get no gradient.

    Returns:
        q, k and v, (B, H, T, D) each, in qkv's dtype.

    Raises:
        ValueError: for shapes that do not fit.
    """
    fits = qkv.dim() == 5 and qkv.shape[2] == 3 and qkv.shape[4] == 2 * cos.shape[1] and len(cos) == qkv.shape[1]
    if not (fits and cos.shape == sin.shape):
        raise ValueError(f"qkv, cos and sin do not fit: {_about(qkv)}, {_about(cos)}, {_about(sin)}")
    if qkv.shape[4] > MAX_HEAD_WIDTH or not runs_registered_op("rotary", qkv):
        return reference.rotary(qkv, cos, sin)
    parts: tuple[Tensor, Tensor, Tensor] = custom_ops.rotary(qkv, cos, sin)
    return parts


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean softmax cross-entropy in nats, computed in float32.

    Args:
        logits: (N, V), any floating dtype.
        targets: (N,) int64 in [0, V), or ``ignore_index`` for rows that do not count.

    Returns:
        A float32 scalar (float64 for float64 logits); NaN where no row counts.

    Raises:
        ValueError: for shapes or a dtype of ``targets`` that do not fit.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"logits and targets do not fit: {_about(logits)}, {_about(targets)}")
    if not runs_registered_op("cross_entropy", logits):
        return reference.cross_entropy(logits, targets, ignore_index)
    loss: Tensor = custom_ops.cross_entropy(logits, targets, ignore_index)[0]
    return loss


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer to ``x``, with PyTorch's own function except on a CPU in bfloat16.

    Args:
        x: (..., C). weight: (O, C). bias: (O,); in x's dtype, or under autocast.

    Returns:
        (..., O).
    """
    if cpu_linear.suits(x):
        return cpu_linear.linear(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


def draw_seeds(count: int, device: torch.device) -> Tensor:
    """Return dropout seeds, (count,) int64, from PyTorch's generator of ``device``."""
    return torch.randint(2**63 - 1, (count,), device=device)


@contextmanager
def seeds_from(seeds: Tensor) -> Iterator[None]:
    """Make each kernel with dropout in this context take the next of ``seeds`` instead of drawing its own.

    One draw serves a whole step, and a captured step reads whatever ``seeds`` holds when it is replayed. Ops that run
    no kernel take none.

    Args:
        seeds: (n,) int64 on the ops' device, from ``draw_seeds``; one for each op with dropout.
    """
    global _seeds
    before, _seeds = _seeds, iter(seeds.split(1))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        _seeds = before


def _check_dropout(dropout_p: float, seed: Tensor | None) -> None:
    reference.dropout_threshold(dropout_p)
    if seed is not None and (seed.dtype != torch.int64 or seed.shape != (1,)):
        raise ValueError(f"seed is {_about(seed)}; it must be (1,) of torch.int64")


def _check_norm(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if not weight.shape == bias.shape == x.shape[-1:]:
        raise ValueError(f"x, weight and bias do not fit: {_about(x)}, {_about(weight)}, {_about(bias)}")


def _about(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def _seed(like: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor | None:
    if not dropout_p:
        return None
    if seed is None and _seeds is not None:
        return next(_seeds)
    return draw_seeds(1, like.device) if seed is None else seed

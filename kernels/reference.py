"""Every op in plain PyTorch: its definition, the fallback where no kernel runs, and the reference of kernel tests.

An op without a seed is PyTorch's own function. With a seed it is written out, and drops exactly what the kernel with
the same seed drops. Forward passes are differentiable; the ``_backward`` functions are the same gradients written out,
for devices on which the registered op has no kernel.

Shapes: B batch, H heads, T time, D head width, N rows, C channels, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_UINT32 = 0xFFFFFFFF


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """Compute ``kernels.ops.attention`` in plain PyTorch."""
    if dropout_p and seed is not None:
        return attention_forward(q, k, v, dropout_p, seed)[0]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=q.shape[2] > 1)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention, in q's shape and dtype, and the log-sum-exp of each query's scores, (B, H, T)."""
    q, k, v, dtype = _wide(q), _wide(k), _wide(v), q.dtype
    with torch.autocast(q.device.type, enabled=False):  # which would narrow the matmuls again
        scores = _causal_scores(q, k)
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp() * _attention_mask(scores, dropout_p, seed)
        return (weights @ v).to(dtype), lse


def attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, (B, H, T, D) (Dao et al. 2022, "FlashAttention", appendix B.4)."""
    d_out, q, k, v, out, dtype = _wide(d_out), _wide(q), _wide(k), _wide(v), _wide(out), q.dtype
    with torch.autocast(q.device.type, enabled=False):  # as above
        scores = _causal_scores(q, k)
        weights = (scores - lse[..., None]).exp()
        mask = _attention_mask(scores, dropout_p, seed)
        d_v = (weights * mask).transpose(2, 3) @ d_out
        d_scores = weights * ((d_out @ v.transpose(2, 3)) * mask - (d_out * out).sum(-1, keepdim=True))
        d_scores = d_scores * q.shape[3] ** -0.5
        return (d_scores @ k).to(dtype), (d_scores.transpose(2, 3) @ q).to(dtype), d_v.to(dtype)


def _causal_scores(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])  # a single query is the last
    return scores.masked_fill(later, -math.inf)


def _attention_mask(scores: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    rows = scores.shape[0] * scores.shape[1] * scores.shape[2]
    return _dropout(rows, scores.shape[3], dropout_p, seed, scores).view_as(scores)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute ``kernels.ops.layer_norm`` in plain PyTorch."""
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps).to(x.dtype)


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer norm of (..., C) in ``dtype``, and each row's mean and reciprocal standard deviation, (N,)."""
    wide = _wide(x)
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    rstd = (variance + eps).rsqrt()
    y = (wide - mean) * rstd * _wide(weight) + _wide(bias)
    return y.to(dtype), mean.flatten(), rstd.flatten()


def layer_norm_backward(d_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, (..., C), in float32 or wider, and of weight and bias, (2, C)."""
    d_y, x = _wide(d_y), _wide(x)
    shape = (*x.shape[:-1], 1)
    normed = (x - mean.view(shape)) * rstd.view(shape)
    d_normed = d_y * _wide(weight)
    d_x = d_normed - d_normed.mean(-1, keepdim=True) - normed * (d_normed * normed).mean(-1, keepdim=True)
    d_weight, d_bias = (each.flatten(0, -2).sum(0) for each in (d_y * normed, d_y))
    return d_x * rstd.view(shape), torch.stack([d_weight, d_bias]).to(weight.dtype)


def add_dropout_layer_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Compute ``kernels.ops.add_dropout_layer_norm`` in plain PyTorch."""
    if dropout_p and seed is not None:
        total = add_dropout(residual, x, dropout_p, seed)
    else:
        total = residual + F.dropout(x, dropout_p, training=dropout_p > 0.0)
    return total, layer_norm(total, weight, bias, eps).to(x.dtype)


def add_dropout(residual: Tensor, x: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Return ``residual`` + the dropped-out ``x``, both (..., C), in ``residual``'s dtype."""
    return (_wide(residual) + dropout(_wide(x), dropout_p, seed)).to(residual.dtype)


def dropout(x: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Drop the elements of (..., C) that ``seed`` drops; applied to a gradient, this is its own backward pass."""
    return x * _dropout(x.numel() // x.shape[-1], x.shape[-1], dropout_p, seed, x).view_as(x)


def rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``kernels.ops.rotary`` in plain PyTorch, in the dtype of ``qkv``."""
    parts: tuple[Tensor, Tensor, Tensor] = _SplitRotateQKV.apply(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))  # type: ignore[no-untyped-call]
    return parts


class _SplitRotateQKV(torch.autograd.Function):
    """Splits and rotates without the full copies of ``qkv`` that indexing makes in the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None]:
        return _packed_gradient(d_q, d_k, d_v, *ctx.saved_tensors), None, None


def rotary_forward(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rotated queries and keys, and the values, (B, H, T, D), computed in float32."""
    q, k, v = _wide(qkv).permute(2, 0, 3, 1, 4)
    return rotate(q, cos, sin).to(qkv.dtype), rotate(k, cos, sin).to(qkv.dtype), v.to(qkv.dtype)


def rotary_backward(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of ``qkv``, (B, T, 3, H, D), computed in float32."""
    return _packed_gradient(_wide(d_q), _wide(d_k), _wide(d_v), cos, sin).to(d_q.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate the pairs of channels of (..., D), half of D apart, by angles (..., D / 2); write to ``out`` if given."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    (a, b), (rotated_a, rotated_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=rotated_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=rotated_b).addcmul_(a, sin)
    return out


def _packed_gradient(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, heads, time, width = d_q.shape
    d_qkv = d_q.new_empty(batch, time, 3, heads, width)
    q, k, v = d_qkv.permute(2, 0, 3, 1, 4)
    rotate(d_q, cos, -sin, out=q)
    rotate(d_k, cos, -sin, out=k)
    v.copy_(d_v)
    return d_qkv


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Compute ``kernels.ops.cross_entropy`` in plain PyTorch."""
    return F.cross_entropy(_wide(logits), targets, ignore_index=ignore_index)


def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss, each row's log-sum-exp, (N,), and the number of rows that count."""
    logits = _wide(logits)
    lse = logits.logsumexp(-1)
    counts = targets != ignore_index
    losses = lse - logits.gather(1, targets.where(counts, 0)[:, None])[:, 0]
    count = counts.sum().to(logits.dtype)
    return losses.where(counts, 0).sum() / count, lse, count


def cross_entropy_backward(
    d_loss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, count: Tensor, ignore_index: int
) -> Tensor:
    """Return the gradient of ``logits``, (N, V)."""
    counts = targets != ignore_index
    d_logits = (_wide(logits) - lse[:, None]).exp()
    d_logits = d_logits - F.one_hot(targets.where(counts, 0), logits.shape[1])
    return (d_logits.where(counts[:, None], 0) * (d_loss / count)).to(logits.dtype)


def dropout_threshold(dropout_p: float) -> int:
    """Return the signed 32-bit number below which a hash means "drop". Raises ValueError unless 0 <= p < 1."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")
    return round(dropout_p * 2**32) - 2**31


def keep_mask(rows: int, columns: int, dropout_p: float, seed: Tensor) -> Tensor:
    """Return what ``kernels.gpu.dropout`` keeps, (rows, columns) bool: its arithmetic on int64 with 32 bits kept.

    Args:
        seed: (1,) int64; the mask is on its device.
    """
    low = _mix(seed & _UINT32)
    high = _mix((seed >> 32 & _UINT32) ^ low ^ 0x9E3779B9)  # the constant keeps row 0 from cancelling it
    row = torch.arange(rows, device=seed.device)
    column = torch.arange(columns, device=seed.device)
    keys = _mix(_mix(row ^ low) ^ high)
    bits = keys[:, None] ^ (column * 0x9E3779B1 & _UINT32)
    bits = bits * 0x85EBCA6B & _UINT32
    bits = (bits ^ (bits >> 15)) * 0xC2B2AE35 & _UINT32
    signed = bits - (bits >> 31 << 32)
    return signed >= dropout_threshold(dropout_p)


def _mix(bits: Tensor) -> Tensor:
    """Apply MurmurHash3's 32-bit finalizer (Appleby 2011): a bijection in which every bit affects every other."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B & _UINT32
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35 & _UINT32
    return bits ^ (bits >> 16)


def _dropout(rows: int, columns: int, dropout_p: float, seed: Tensor | None, like: Tensor) -> Tensor:
    """Return (rows, columns) in ``like``'s dtype: 0 where dropped, else 1 / (1 - p)."""
    if not dropout_p:
        return like.new_ones(rows, columns)
    assert seed is not None, "dropout needs a seed"
    return keep_mask(rows, columns, dropout_p, seed).to(like.dtype) / (1.0 - dropout_p)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

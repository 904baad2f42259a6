"""What a training on a CPU runs instead of PyTorch's own attention and dropout, where those are slow.

PyTorch's attention of 16-bit numbers takes two to three times as long as its matrix products would, above all backward,
and with dropout far longer; a dropout mask takes a random number of 64 bits an element, where 16 do (NOTES.md).

Shapes: B batch, H heads, T time, D head width, C channels.
"""

import math
from typing import Any

import torch
from torch import Tensor

MOST_SCORES = 2**26  # B x H x T x T: two bytes each are kept for the backward pass, in every layer
LEVELS = 2**16  # of a dropout mask's random numbers


def suits_attention(q: Tensor, k: Tensor, dropout_p: float) -> bool:
    """Whether ``attention`` is the faster one for these."""
    whole = q.shape == k.shape and q.shape[2] > 1
    small = q.shape[0] * q.shape[1] * q.shape[2] ** 2 <= MOST_SCORES
    return whole and small and runs_here(q) and (dropout_p > 0.0 or q.dtype == torch.bfloat16)


def runs_here(x: Tensor) -> bool:
    """Whether ``x`` is a CPU's, and no compiler looks on, which could not trace what draws the masks."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """See ``kernels.ops.attention``; of whole texts, whose weights are kept for the backward pass."""
    out: Tensor = _Attention.apply(q, k, v, dropout_p)  # type: ignore[no-untyped-call]
    return out


def dropout(x: Tensor, dropout_p: float) -> Tensor:
    """``x`` with its elements dropped with that probability, the others scaled to keep its mean."""
    keep, scale = _keep(x.shape, dropout_p)
    return x * keep.to(x.dtype).mul_(scale)


def _keep(shape: torch.Size, dropout_p: float) -> tuple[Tensor, float]:
    """1 for what stays and 0 for what does not, in int8, and the factor that makes up for it.

    Draws from PyTorch's generator. A mask of bool takes four times as long to make and to multiply by (NOTES.md).
    """
    dropped = min(round(dropout_p * LEVELS), LEVELS - 1)
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[:count].view(shape)
    keep = torch.ge(numbers, dropped - LEVELS // 2, out=torch.empty(shape, dtype=torch.int8))
    return keep, LEVELS / (LEVELS - dropped)


class _Attention(torch.autograd.Function):
    """Matrix products of all heads at once; only the weights are as large as T x T."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        batch, heads, time, width = q.shape
        q, k, v = (x.reshape(batch * heads, time, width) for x in (q, k, v))
        later = torch.full((time, time), -math.inf, dtype=q.dtype).triu(1)
        keep, ctx.factor = _keep(torch.Size((batch * heads, time, time)), dropout_p) if dropout_p else (None, 1.0)
        with torch.autocast("cpu", enabled=False):
            scores = torch.baddbmm(later, q, k.mT, alpha=width**-0.5)
            if q.dtype == torch.bfloat16:  # rounded below a row's largest, where rounding tells least
                scores = torch.baddbmm(later - scores.amax(-1, keepdim=True), q, k.mT, alpha=width**-0.5)
            weights = scores.softmax(-1)
            out = torch.bmm(weights if keep is None else weights * keep.to(q.dtype), v)
        if keep is not None:
            out *= ctx.factor
        ctx.save_for_backward(q, k, v, weights, keep, out)
        return out.view(batch, heads, time, width)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, keep, out = ctx.saved_tensors
        shape, scale = d_out.shape, d_out.shape[3] ** -0.5
        d_out, kept = d_out.reshape(out.shape), weights
        precise = torch.promote_types(q.dtype, torch.float32)
        # What the softmax takes away from a row's gradient (kernels/reference.py).
        along = (d_out.to(precise) * out).sum(-1, keepdim=True).to(q.dtype)
        with torch.autocast("cpu", enabled=False):
            if keep is None:
                d_scores = torch.baddbmm((-along).expand_as(weights), d_out, v.mT)  # subtracted before it is rounded
            else:
                keep = keep.to(q.dtype)
                d_out, kept = d_out * ctx.factor, weights * keep
                d_scores = torch.bmm(d_out, v.mT).mul_(keep).sub_(along)
            d_scores *= weights
            d_v = torch.bmm(kept.mT, d_out)
            d_q, d_k = torch.bmm(d_scores, k) * scale, torch.bmm(d_scores.mT, q) * scale
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None

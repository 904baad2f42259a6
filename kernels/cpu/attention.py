"""Causal attention for training on a CPU, where PyTorch's own is slow.

PyTorch's attention in 16 bits takes longer than its matrix products would, above all in the backward pass, and far
longer with dropout. Here the scores of some rows of some heads are computed at a time, as many as a cache holds, and
tiles beyond the diagonal are left out. Where an operation on floating-point numbers is equally one on their bits, it is
done on integers, which is much faster in PyTorch (docs/lab/cpu-speed.md).

Shapes: B batch, H heads, T time, D head width.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import runs_eagerly_on_cpu
from kernels.cpu.dropout import Masks, as_integers

MAX_SCORES = 2**26  # B x H x T x T: each is kept for the backward pass, in every layer, in the dtype of q
ROWS = 64  # queries in a tile
TILE = 3 * 2**18  # scores in a tile, at most

_lock = threading.Lock()


def suits(q: Tensor, k: Tensor, dropout_p: float) -> bool:
    """Return whether ``attention`` is faster than PyTorch's for these inputs."""
    whole = q.shape == k.shape and q.shape[2] > 1
    small = q.shape[0] * q.shape[1] * q.shape[2] ** 2 <= MAX_SCORES
    return whole and small and runs_eagerly_on_cpu(q) and (dropout_p > 0.0 or q.dtype == torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute ``kernels.ops.attention`` for whole texts; the weights are kept for the backward pass."""
    out: Tensor = _Attention.apply(q, k, v, dropout_p)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """Keeps the weights for the backward pass; with dropout, a weight that stays is marked by a negative sign."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        shape = q.shape
        time, width = shape[2:]
        q, k, v = (x.reshape(-1, time, width) for x in (q, k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        masks = Masks(dropout_p) if dropout_p else None
        tiles = []
        with torch.autocast("cpu", enabled=False):
            for heads, rows, seen in _tiles(len(q), time):
                weights = _softmax(q[heads, rows], k[heads, seen])
                if masks is None:
                    out[heads, rows].baddbmm_(weights, v[heads, seen], beta=0)
                else:
                    _mark(weights, masks.draw(weights.shape))
                    out[heads, rows].baddbmm_(_marked(weights), v[heads, seen], beta=0, alpha=-masks.scale)
                if any(ctx.needs_input_grad):
                    tiles.append(weights)
        ctx.scale = masks.scale if masks is not None else None
        ctx.save_for_backward(q, k, v, *tiles)
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *tiles = ctx.saved_tensors
        shape, time, width = d_out.shape, d_out.shape[2], d_out.shape[3]
        d_out = d_out.reshape(q.shape)
        d_q, d_k, d_v = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
        kept_scale = -ctx.scale if ctx.scale is not None else 1.0
        scale = abs(kept_scale) * width**-0.5
        with torch.autocast("cpu", enabled=False):
            # From the end, so that a head's first tile writes all of its keys' gradients, which the others add to.
            for (heads, rows, seen), weights in zip(reversed(list(_tiles(len(q), time))), reversed(tiles), strict=True):
                d_rows = d_out[heads, rows]
                d_weights = torch.bmm(d_rows, v[heads, seen].contiguous().mT)
                kept = weights
                if ctx.scale is not None:
                    kept = _marked(weights)
                    as_integers(d_weights).bitwise_and_(as_integers(weights) >> (8 * weights.itemsize - 1))
                    weights = weights.abs()
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                beta = int(seen.stop < time)
                d_v[heads, seen].baddbmm_(kept.mT, d_rows, beta=beta, alpha=kept_scale)
                d_k[heads, seen].baddbmm_(d_scores.mT, q[heads, rows], beta=beta, alpha=scale)
                d_q[heads, rows].baddbmm_(d_scores, k[heads, seen], beta=0, alpha=scale)
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None


def _tiles(heads: int, time: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield for each tile its heads, the rows of those heads, and the columns that these rows see."""
    together = max(1, TILE // (min(ROWS, time) * time))
    for head in range(0, heads, together):
        for row in range(0, time, ROWS):
            end = min(row + ROWS, time)
            yield slice(head, head + together), slice(row, end), slice(0, end)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Return weights (H, rows, seen) in q's dtype, for (H, rows, D) and (H, seen, D), from scores not rounded to it."""
    rows, seen = q.shape[1], k.shape[1]
    precise = torch.promote_types(q.dtype, torch.float32)
    later = torch.full((rows, rows), -math.inf, dtype=precise).triu(1)
    scores = torch.empty(len(q), rows, seen, dtype=precise)
    with _float32_factors_as(q.dtype):
        scores.baddbmm_(q.to(precise), k.to(precise).mT, beta=0, alpha=q.shape[2] ** -0.5)
    scores[..., seen - rows :].add_(later)
    return torch.softmax(scores, -1, out=scores).to(q.dtype)


@contextmanager
def _float32_factors_as(dtype: torch.dtype) -> Iterator[None]:
    """Let matrix products treat float32 factors as ``dtype``, from which they were converted without loss."""
    if dtype != torch.bfloat16:
        yield
        return
    settings: Any = torch.backends.mkldnn
    with _lock:  # the setting applies to the whole process
        before = settings.matmul.fp32_precision
        settings.matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            follows = before == settings.fp32_precision  # the setting of all of oneDNN
            settings.matmul.fp32_precision = "none" if follows else before


def _mark(weights: Tensor, keep: Tensor) -> None:
    """Give weights that stay a negative sign, whatever their sign was, since NaN may have either."""
    numbers = as_integers(weights)
    numbers.bitwise_or_(keep.to(numbers.dtype).mul_(torch.iinfo(numbers.dtype).min))


def _marked(weights: Tensor) -> Tensor:
    """Return ``weights`` with 0 for unmarked ones; as integers, the marked ones are negative."""
    return as_integers(weights).clamp_max(0).view(weights.dtype)

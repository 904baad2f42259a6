"""What a training on a CPU runs instead of PyTorch's attention, dropout, layer norm and linear, where those are slow.

PyTorch's attention of 16-bit numbers takes two to three times as long as its matrix products would, above all backward,
and with dropout far longer. Here some heads' rows of scores are worked on at a time, as many as a cache holds, and what
lies behind the diagonal is left out; where an operation on floating-point numbers is one on their bits too, it is
done on integers, which PyTorch is several times as fast at (NOTES.md).

Shapes: B batch, H heads, T time, D head width, C channels.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.cpu.dropout import Masks

MOST_SCORES = 2**26  # B x H x T x T: two bytes each are kept for the backward pass, in every layer
ROWS = 64  # queries of a tile
FEW = 128  # rows that are not worth a way of their own: a character in sampling, not a training
TILE = 3 * 2**18  # scores of a tile, at the most
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers, by their bytes

_lock = threading.Lock()


def suits_attention(q: Tensor, k: Tensor, dropout_p: float) -> bool:
    """Whether ``attention`` is the faster one for these."""
    whole = q.shape == k.shape and q.shape[2] > 1
    small = q.shape[0] * q.shape[1] * q.shape[2] ** 2 <= MOST_SCORES
    return whole and small and runs_here(q) and (dropout_p > 0.0 or q.dtype == torch.bfloat16)


def runs_here(x: Tensor) -> bool:
    """Whether ``x`` is a CPU's, and no compiler looks on, which could not trace what is here."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    """See ``kernels.ops.attention``; of whole texts, whose weights are kept for the backward pass."""
    out: Tensor = _Attention.apply(q, k, v, dropout_p)  # type: ignore[no-untyped-call]
    return out


def suits_joint(residual: Tensor, x: Tensor, dropout_p: float) -> bool:
    """Whether ``add_dropout_layer_norm`` is the faster one for these."""
    wide = residual.dtype in (torch.float32, torch.float64)
    return wide and runs_here(x) and (dropout_p > 0.0 or x.numel() >= FEW * x.shape[-1])


def add_dropout_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float = 0.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """See ``kernels.ops.add_dropout_layer_norm``; ``residual`` is of float32 or float64."""
    weight, bias = weight.to(residual.dtype), bias.to(residual.dtype)
    out: tuple[Tensor, Tensor] = _Joint.apply(residual, x, weight, bias, dropout_p, eps)  # type: ignore[no-untyped-call]
    return out


def suits_linear(x: Tensor) -> bool:
    """Whether ``linear`` is the faster one for this."""
    wide = x.dtype == torch.bfloat16 and x.numel() >= FEW * x.shape[-1]
    return wide and runs_here(x) and multiplies_bfloat16()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``kernels.ops.linear``."""
    out: Tensor = _Linear.apply(x, weight.to(x.dtype), bias.to(x.dtype))  # type: ignore[no-untyped-call]
    return out


@cache
def multiplies_bfloat16() -> bool:
    """Whether oneDNN is there and this processor can do with it what ``linear`` asks for."""
    onednn: Any = torch.backends.mkldnn
    return onednn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Linear(torch.autograd.Function):
    """oneDNN adds the bias as it writes the product; PyTorch's linear first fills the output with copies of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d_y.reshape(-1, d_y.shape[-1])
        d_x = (rows @ weight).view(*d_y.shape[:-1], weight.shape[1]) if ctx.needs_input_grad[0] else None
        d_weight = rows.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


class _Joint(torch.autograd.Function):
    """Some rows at a time, as many as a cache holds from the sum to its norm in ``x``'s dtype."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        channels = x.shape[-1]
        masks = Masks(dropout_p) if dropout_p else None
        ctx.scale = masks.scale if masks is not None else 1.0
        total = torch.empty_like(residual, memory_format=torch.contiguous_format)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        means, rstds, keeps = [], [], []
        pieces = zip(*(_pieces(whole) for whole in (residual, x, total, y)), strict=True)
        for residual_rows, x_rows, total_rows, y_rows in pieces:
            if masks is not None:
                keeps.append(masks.draw(x_rows.shape))
                x_rows = _kept(x_rows, keeps[-1])
            torch.add(residual_rows, x_rows, alpha=ctx.scale, out=total_rows)
            normed, mean, rstd = torch.native_layer_norm(total_rows, (channels,), weight, bias, eps)
            y_rows.copy_(normed)
            means.append(mean)
            rstds.append(rstd)
        ctx.save_for_backward(total, weight, bias, *means, *rstds, *keeps)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_y: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, bias, *rest = ctx.saved_tensors
        channels = total.shape[-1]
        d_residual, d_x = torch.empty_like(total), torch.empty_like(d_y, memory_format=torch.contiguous_format)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        pieces = list(zip(*(_pieces(whole) for whole in (d_total, d_y, total, d_residual, d_x)), strict=True))
        count = len(pieces)
        means, rstds, keeps = rest[:count], rest[count : 2 * count], rest[2 * count :]
        wanted = [True, *ctx.needs_input_grad[2:4]]
        for i, (d_total_rows, d_y_rows, total_rows, d_residual_rows, d_x_rows) in enumerate(pieces):
            d_normed, d_weight_part, d_bias_part = torch.ops.aten.native_layer_norm_backward(
                d_y_rows.to(total.dtype), total_rows, (channels,), means[i], rstds[i], weight, bias, wanted
            )
            torch.add(d_normed, d_total_rows, out=d_residual_rows)
            if keeps:
                torch.mul(d_residual_rows, ctx.scale, out=d_normed)
                d_x_rows.copy_(d_normed)
                _bits(d_x_rows).mul_(keeps[i].to(BITS[d_x.itemsize]))
            else:
                d_x_rows.copy_(d_residual_rows)
            if wanted[1]:
                d_weight += d_weight_part
            if wanted[2]:
                d_bias += d_bias_part
        return d_residual, d_x, d_weight, d_bias, None, None


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """(..., C) as (N, C) each, half a tile: the joint has four of float32 at a time."""
    rows: tuple[Tensor, ...] = x.reshape(-1, x.shape[-1]).split(max(1, TILE // 2 // x.shape[-1]))  # type: ignore[no-untyped-call]
    return rows


class _Attention(torch.autograd.Function):
    """Weights are kept for the backward pass; with dropout, the sign of one that stays is negative."""

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
                    _bits(d_weights).bitwise_and_(_bits(weights) >> (8 * weights.itemsize - 1))
                    weights = weights.abs()
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                beta = int(seen.stop < time)
                d_v[heads, seen].baddbmm_(kept.mT, d_rows, beta=beta, alpha=kept_scale)
                d_k[heads, seen].baddbmm_(d_scores.mT, q[heads, rows], beta=beta, alpha=scale)
                d_q[heads, rows].baddbmm_(d_scores, k[heads, seen], beta=0, alpha=scale)
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None


def _tiles(heads: int, time: int) -> Iterator[tuple[slice, slice, slice]]:
    """Which heads, which of their rows, and which columns those see."""
    together = max(1, TILE // (min(ROWS, time) * time))
    for head in range(0, heads, together):
        for row in range(0, time, ROWS):
            end = min(row + ROWS, time)
            yield slice(head, head + together), slice(row, end), slice(0, end)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """(H, rows, D) and (H, seen, D) -> (H, rows, seen) weights in q's dtype, from scores not rounded to it."""
    rows, seen = q.shape[1], k.shape[1]
    precise = torch.promote_types(q.dtype, torch.float32)
    later = torch.full((rows, rows), -math.inf, dtype=precise).triu(1)
    scores = torch.empty(len(q), rows, seen, dtype=precise)
    with _products(q.dtype):
        scores.baddbmm_(q.to(precise), k.to(precise).mT, beta=0, alpha=q.shape[2] ** -0.5)
    scores[..., seen - rows :].add_(later)
    return torch.softmax(scores, -1, out=scores).to(q.dtype)


@contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 from factors that were of ``dtype``, and are read as that."""
    if dtype != torch.bfloat16:
        yield
        return
    settings: Any = torch.backends.mkldnn
    with _lock:  # the setting is the whole process's
        before = settings.matmul.fp32_precision
        settings.matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            follows = before == settings.fp32_precision  # what is asked of all of oneDNN
            settings.matmul.fp32_precision = "none" if follows else before


def _mark(weights: Tensor, keep: Tensor) -> None:
    """Give those that stay a negative sign, whatever theirs was: that of what is not a number may be either."""
    bits = _bits(weights)
    bits.bitwise_or_(keep.to(bits.dtype).mul_(torch.iinfo(bits.dtype).min))


def _marked(weights: Tensor) -> Tensor:
    """Those that are not marked as 0; the integers of the others are negative."""
    return _bits(weights).clamp_max(0).view(weights.dtype)


def _kept(x: Tensor, keep: Tensor) -> Tensor:
    """``x`` where ``keep`` is 1, 0 where it is 0."""
    bits = _bits(x)
    return torch.mul(bits, keep.to(bits.dtype)).view(x.dtype)


def _bits(x: Tensor) -> Tensor:
    return x.view(BITS[x.itemsize])

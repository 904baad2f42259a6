"""The sum, dropout and layer norm between two branches, for training on a CPU, in one pass over memory.

Shapes: N rows, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import runs_eagerly_on_cpu
from kernels.cpu.dropout import INTEGERS, Masks, as_integers

MIN_ROWS = 128  # fewer are not worth it: sampling has one row at a time
PIECE = 3 * 2**17  # elements in a piece, at most; the cache holds four pieces in float32


def suits(residual: Tensor, x: Tensor, dropout_p: float) -> bool:
    """Return whether ``add_dropout_layer_norm`` is faster than PyTorch's functions for these inputs."""
    wide = residual.dtype in (torch.float32, torch.float64)
    return wide and runs_eagerly_on_cpu(x) and (dropout_p > 0.0 or x.numel() >= MIN_ROWS * x.shape[-1])


def add_dropout_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float = 0.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Compute ``kernels.ops.add_dropout_layer_norm`` for a ``residual`` of float32 or float64."""
    weight, bias = weight.to(residual.dtype), bias.to(residual.dtype)
    out: tuple[Tensor, Tensor] = _AddNorm.apply(residual, x, weight, bias, dropout_p, eps)  # type: ignore[no-untyped-call]
    return out


class _AddNorm(torch.autograd.Function):
    """Works on as many rows at a time as a cache holds, from the sum to its norm in ``x``'s dtype."""

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
                as_integers(d_x_rows).mul_(keeps[i].to(INTEGERS[d_x.itemsize]))
            else:
                d_x_rows.copy_(d_residual_rows)
            if wanted[1]:
                d_weight += d_weight_part
            if wanted[2]:
                d_bias += d_bias_part
        return d_residual, d_x, d_weight, d_bias, None, None


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Return (..., C) as tensors of (N, C), each of at most ``PIECE`` elements."""
    rows: tuple[Tensor, ...] = x.reshape(-1, x.shape[-1]).split(max(1, PIECE // x.shape[-1]))  # type: ignore[no-untyped-call]
    return rows


def _kept(x: Tensor, keep: Tensor) -> Tensor:
    """Return ``x`` where ``keep`` is 1, and 0 where it is 0."""
    numbers = as_integers(x)
    return torch.mul(numbers, keep.to(numbers.dtype)).view(x.dtype)

"""A linear layer with a bias, for training on a CPU in bfloat16.

Shapes: C channels, O outputs.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import runs_eagerly_on_cpu

MIN_ROWS = 128  # fewer are not worth it: sampling has one row at a time


def suits(x: Tensor) -> bool:
    """Return whether ``linear`` is faster than PyTorch's for this input."""
    wide = x.dtype == torch.bfloat16 and x.numel() >= MIN_ROWS * x.shape[-1]
    return wide and runs_eagerly_on_cpu(x) and multiplies_bfloat16()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``kernels.ops.linear`` for an ``x`` in bfloat16."""
    out: Tensor = _Linear.apply(x, weight.to(x.dtype), bias.to(x.dtype))  # type: ignore[no-untyped-call]
    return out


@cache
def multiplies_bfloat16() -> bool:
    """Return whether oneDNN is available and supports bfloat16 on this processor."""
    onednn: Any = torch.backends.mkldnn
    return onednn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Linear(torch.autograd.Function):
    """Lets oneDNN add the bias as it writes the product; PyTorch's linear first fills the output with copies of it."""

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

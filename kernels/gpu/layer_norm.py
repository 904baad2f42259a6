"""Triton: layer norm, alone and after residual + dropout, forward and backward (Ba et al. 2016).

A row is read once and stays in registers. The gradients of weight and bias are summed in two stages: each program sums
its rows, and a final sum adds up the programs. There are no atomics, so the same input always gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import block_sizes
from kernels.gpu.dropout import keep, row_keys
from kernels.gpu.launch import kernel, multiprocessors
from kernels.reference import dropout_threshold


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the norm of ``x``, or of ``residual`` + dropped-out ``x`` where there is a residual; (..., C).

    Returns:
        The sum (None without a residual), the norm in x's dtype, and each row's mean and reciprocal standard
        deviation, (N,) float32.
    """
    x = x.contiguous()
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    total = None if residual is None else residual.new_empty(residual.shape)
    y = torch.empty_like(x)
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    tile = block_sizes.layer_norm(triton.next_power_of_2(channels))
    _forward_kernel.launch(
        rows,
        tile,
        {
            "x_ptr": x,
            "residual_ptr": None if residual is None else residual.contiguous(),
            "total_ptr": total,
            "y_ptr": y,
            "weight_ptr": weight.contiguous(),
            "bias_ptr": bias.contiguous(),
            "mean_ptr": mean,
            "rstd_ptr": rstd,
            "seed_ptr": seed,
            "channels": channels,
            "eps": eps,
            "threshold": dropout_threshold(dropout_p),
            "keep_scale": 1.0 / (1.0 - dropout_p),
            "BLOCK_C": tile.columns,
            "RESIDUAL": residual is not None,
            "DROPOUT": dropout_p > 0.0,
        },
    )
    return total, y, mean, rstd


def backward(
    d_y: Tensor,
    d_total: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    branch_dtype: torch.dtype | None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of a norm whose input was ``x``, (..., C).

    Args:
        d_total: the gradient that reaches ``x`` by the residual stream, not through the norm, or None.
        branch_dtype: the dtype of the dropped-out branch, which then gets a gradient too; None for a plain layer norm.

    Returns:
        The gradients of ``x``, of the branch (or None), and of weight and bias, (2, C).
    """
    x, d_y = x.contiguous(), d_y.contiguous()
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    d_x = torch.empty_like(x)
    d_branch = None if branch_dtype is None else torch.empty_like(x, dtype=branch_dtype)
    wanted = block_sizes.LAYER_NORM_PROGRAMS_PER_SM * multiprocessors(x.device)
    programs = min(rows, max(block_sizes.LAYER_NORM_PROGRAMS, wanted))
    partial_sums = x.new_empty(2, programs, channels, dtype=torch.float32)
    tile = block_sizes.layer_norm(triton.next_power_of_2(channels))
    _backward_kernel.launch(
        programs,
        tile,
        {
            "d_y_ptr": d_y,
            "d_total_ptr": None if d_total is None else d_total.contiguous(),
            "x_ptr": x,
            "weight_ptr": weight.contiguous(),
            "mean_ptr": mean,
            "rstd_ptr": rstd,
            "seed_ptr": seed,
            "d_x_ptr": d_x,
            "d_branch_ptr": d_branch,
            "d_weight_ptr": partial_sums[0],
            "d_bias_ptr": partial_sums[1],
            "rows": rows,
            "channels": channels,
            "threshold": dropout_threshold(dropout_p),
            "keep_scale": 1.0 / (1.0 - dropout_p),
            "BLOCK_C": tile.columns,
            "TOTAL": d_total is not None,
            "BRANCH": d_branch is not None,
            "DROPOUT": dropout_p > 0.0,
        },
    )
    return d_x, d_branch, partial_sums.sum(1).to(weight.dtype)


@kernel("x_ptr", "residual_ptr", "total_ptr", "y_ptr", "weight_ptr", "bias_ptr", "channels")
def _forward_kernel(
    x_ptr,  # (N, C)
    residual_ptr,  # (N, C)
    total_ptr,  # (N, C), residual + dropped-out x
    y_ptr,  # (N, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    mean_ptr,  # (N,) float32
    rstd_ptr,  # (N,) float32
    seed_ptr,  # (1,) int64
    channels,
    eps,
    threshold,
    keep_scale,
    BLOCK_C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < channels
    start = row * channels
    x = tl.load(x_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        x = tl.where(keep(row_keys(seed_ptr, row), columns, threshold), x * keep_scale, 0.0)
    if RESIDUAL:
        x += tl.load(residual_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
        # Round first, since the backward pass will normalise the rounded sum.
        x = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + start + columns, x, mask=inside)
        x = x.to(tl.float32)
    mean = tl.sum(x, 0) / channels
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = centred * rstd * weight + bias
    tl.store(y_ptr + start + columns, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@kernel("d_y_ptr", "d_total_ptr", "x_ptr", "weight_ptr", "d_x_ptr", "d_branch_ptr", "channels")
def _backward_kernel(
    d_y_ptr,  # (N, C)
    d_total_ptr,  # (N, C)
    x_ptr,  # (N, C)
    weight_ptr,  # (C,)
    mean_ptr,  # (N,) float32
    rstd_ptr,  # (N,) float32
    seed_ptr,  # (1,) int64
    d_x_ptr,  # (N, C)
    d_branch_ptr,  # (N, C)
    d_weight_ptr,  # (programs, C) float32
    d_bias_ptr,  # (programs, C) float32
    rows,
    channels,
    threshold,
    keep_scale,
    BLOCK_C: tl.constexpr,
    TOTAL: tl.constexpr,
    BRANCH: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < channels
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_C,), tl.float32)
    d_bias = tl.zeros((BLOCK_C,), tl.float32)
    for number in range(program, rows, tl.num_programs(0)):
        row = tl.cast(number, tl.int64)
        start = row * channels
        x = tl.load(x_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
        d_y = tl.load(d_y_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        normed = tl.where(inside, (x - tl.load(mean_ptr + row)) * rstd, 0.0)
        d_weight += d_y * normed
        d_bias += d_y
        d_normed = d_y * weight
        along_normed = tl.sum(d_normed * normed, 0) / channels
        along_ones = tl.sum(d_normed, 0) / channels
        d_x = rstd * (d_normed - (normed * along_normed + along_ones))
        if TOTAL:
            d_x += tl.load(d_total_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x_ptr + start + columns, d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
        if BRANCH:
            if DROPOUT:
                d_x = tl.where(keep(row_keys(seed_ptr, row), columns, threshold), d_x * keep_scale, 0.0)
            tl.store(d_branch_ptr + start + columns, d_x.to(d_branch_ptr.dtype.element_ty), mask=inside)
    partial = program.to(tl.int64) * channels + columns
    tl.store(d_weight_ptr + partial, d_weight, mask=inside)
    tl.store(d_bias_ptr + partial, d_bias, mask=inside)

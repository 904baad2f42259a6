"""Triton: softmax cross-entropy, forward and backward, without probabilities in memory.

The forward pass reads the logits once, whatever the vocabulary, by the online softmax (Milakov and Gimelshein 2018),
and keeps one number per row; the backward pass reads them once more and writes their gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import block_sizes
from kernels.gpu.launch import kernel
from kernels.layouts import empty_padded

LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


def forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``kernels.reference.cross_entropy_forward`` with a kernel."""
    logits = _with_rows(logits)
    rows, vocab = logits.shape
    tile = block_sizes.cross_entropy(triton.next_power_of_2(vocab))
    programs = triton.cdiv(rows, tile.rows)
    lse = logits.new_empty(rows, dtype=torch.float32)
    partial_sums = logits.new_empty(2, programs, dtype=torch.float32)
    _forward_kernel.launch(
        programs,
        tile,
        {
            "logits_ptr": logits,
            "targets_ptr": targets.contiguous(),
            "lse_ptr": lse,
            "loss_ptr": partial_sums[1],
            "count_ptr": partial_sums[0],
            "stride": logits.stride(0),
            "rows": rows,
            "vocab": vocab,
            "ignore_index": ignore_index,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
    )
    count, loss = partial_sums.sum(1)
    return loss / count, lse, count


def backward(d_loss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, count: Tensor, ignore_index: int) -> Tensor:
    """Compute ``kernels.reference.cross_entropy_backward`` with a kernel."""
    logits = _with_rows(logits)
    rows, vocab = logits.shape
    d_logits = empty_padded(logits)
    tile = block_sizes.cross_entropy(triton.next_power_of_2(vocab))
    _backward_kernel.launch(
        triton.cdiv(rows, tile.rows),
        tile,
        {
            "d_loss_ptr": d_loss,
            "logits_ptr": logits,
            "targets_ptr": targets.contiguous(),
            "lse_ptr": lse,
            "count_ptr": count,
            "d_logits_ptr": d_logits,
            "stride": logits.stride(0),
            "d_stride": d_logits.stride(0),
            "rows": rows,
            "vocab": vocab,
            "ignore_index": ignore_index,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
    )
    return d_logits


def _with_rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


@kernel("logits_ptr", "stride", "vocab")
def _forward_kernel(
    logits_ptr,  # (N, V), rows ``stride`` apart
    targets_ptr,  # (N,) int64
    lse_ptr,  # (N,) float32
    loss_ptr,  # (programs,) float32, sums
    count_ptr,  # (programs,) float32, rows that count
    stride,
    rows,
    vocab,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    row = program * ROWS + tl.arange(0, ROWS)
    # Only the start of a program's rows can exceed 32 bits; 64-bit offsets from there would double the registers.
    logits_ptr += (program * ROWS).to(tl.int64) * stride
    start = tl.arange(0, ROWS) * stride
    highest = tl.full((ROWS,), LOWEST, tl.float32)  # not -inf, which columns of nothing but -inf would turn into NaN
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, vocab, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = (row[:, None] < rows) & (columns[None, :] < vocab)
        logits = tl.load(logits_ptr + start[:, None] + columns[None, :], mask=inside, other=float("-inf"))
        logits = logits.to(tl.float32)
        new_highest = tl.maximum(highest, tl.max(logits, 1))
        total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(logits - new_highest[:, None]), 1)
        highest = new_highest
    lse = highest + tl.log(tl.where(row < rows, total, 1.0))
    target = tl.load(targets_ptr + row, mask=row < rows, other=ignore_index)
    counts = target != ignore_index
    # A target outside the vocabulary reads nothing and makes the loss NaN.
    at_target = tl.load(logits_ptr + start + target, mask=counts & (target >= 0) & (target < vocab), other=float("nan"))
    tl.store(lse_ptr + row, lse, mask=row < rows)
    tl.store(loss_ptr + program, tl.sum(tl.where(counts, lse - at_target.to(tl.float32), 0.0), 0))
    tl.store(count_ptr + program, tl.sum(counts.to(tl.float32), 0))


@kernel("logits_ptr", "d_logits_ptr", "stride", "d_stride", "vocab")
def _backward_kernel(
    d_loss_ptr,  # () float32
    logits_ptr,  # (N, V), rows ``stride`` apart
    targets_ptr,  # (N,) int64
    lse_ptr,  # (N,) float32
    count_ptr,  # () float32
    d_logits_ptr,  # (N, V), rows ``d_stride`` apart
    stride,
    d_stride,
    rows,
    vocab,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    row = program * ROWS + tl.arange(0, ROWS)
    logits_ptr += (program * ROWS).to(tl.int64) * stride
    d_logits_ptr += (program * ROWS).to(tl.int64) * d_stride
    start = tl.arange(0, ROWS) * stride
    d_start = tl.arange(0, ROWS) * d_stride
    target = tl.load(targets_ptr + row, mask=row < rows, other=ignore_index)
    lse = tl.load(lse_ptr + row, mask=row < rows, other=0.0)
    counts = target != ignore_index
    scale = tl.load(d_loss_ptr) / tl.load(count_ptr)
    for first in range(0, vocab, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = (row[:, None] < rows) & (columns[None, :] < vocab)
        logits = tl.load(logits_ptr + start[:, None] + columns[None, :], mask=inside, other=float("-inf"))
        d_logits = tl.exp(logits.to(tl.float32) - lse[:, None])
        d_logits = (d_logits - tl.where(columns[None, :] == target[:, None], 1.0, 0.0)) * scale
        d_logits = tl.where(counts[:, None], d_logits, 0.0)
        pointers = d_logits_ptr + d_start[:, None] + columns[None, :]
        tl.store(pointers, d_logits.to(d_logits_ptr.dtype.element_ty), mask=inside)

"""Triton: causal attention, forward and backward, with dropout (Dao 2023, "FlashAttention-2").

A program owns a block of queries (forward, dq) or of keys (dkv) and loops over the others, so scores and weights
never leave the chip and no two programs write to the same place. Queries, keys and values are (B, H, T, D) with any
strides whose last is 1, such as views of a packed (B, T, 3, H, D); results are stored as (B, T, H, D), as the
projection reads them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import block_sizes
from kernels.gpu.dropout import keep, row_keys
from kernels.gpu.launch import Kernel, card, kernel
from kernels.layouts import as_heads, empty_heads
from kernels.reference import dropout_threshold

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
QKV = ("q_ptr", "k_ptr", "v_ptr", "q_stride_b", "q_stride_h", "q_stride_t", "kv_stride_b", "kv_stride_h", "kv_stride_t")


def forward(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute ``kernels.reference.attention_forward`` with a kernel."""
    out = empty_heads(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    _launch(_forward_kernel, "forward", q, k, v, dropout_p, seed, out_ptr=out, lse_ptr=lse)
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``kernels.reference.attention_backward`` with two kernels."""
    d_q, d_k, d_v = empty_heads(q), empty_heads(q), empty_heads(q)
    d_out = as_heads(d_out)
    delta = torch.empty_like(lse)
    shared = {"d_out_ptr": d_out, "lse_ptr": lse, "delta_ptr": delta}
    # dq comes first: it writes delta, which dkv reads.
    _launch(_dq_kernel, "dq", q, k, v, dropout_p, seed, **shared, out_ptr=as_heads(out), d_q_ptr=d_q)
    _launch(_dkv_kernel, "dkv", q, k, v, dropout_p, seed, **shared, d_k_ptr=d_k, d_v_ptr=d_v)
    return d_q, d_k, d_v


def _launch(
    function: Kernel, name: str, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor | None, **other: Tensor
) -> None:
    batch, heads, time, width = q.shape
    if q.stride(3) != 1:
        q = as_heads(q)
    if k.stride(3) != 1 or k.stride() != v.stride():
        k, v = as_heads(k), as_heads(v)
    block_d = max(16, triton.next_power_of_2(width))
    tile = block_sizes.attention(name, block_d, q.element_size(), card(q.device))
    function.launch(
        batch * heads * triton.cdiv(time, tile.rows),
        tile,
        {
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": v,
            **other,
            "seed_ptr": seed,
            "q_stride_b": q.stride(0),
            "q_stride_h": q.stride(1),
            "q_stride_t": q.stride(2),
            "kv_stride_b": k.stride(0),
            "kv_stride_h": k.stride(1),
            "kv_stride_t": k.stride(2),
            "heads": heads,
            "time": time,
            "scale": width**-0.5,
            "threshold": dropout_threshold(dropout_p),
            "keep_scale": 1.0 / (1.0 - dropout_p),
            "WIDTH": width,
            "BLOCK_D": block_d,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DROPOUT": dropout_p > 0.0,
        },
    )


@triton.jit
def _place(time, BLOCK: tl.constexpr):
    """Return this program's batch and head, as one number, and its block; neighbours in a head share its keys."""
    blocks = tl.cdiv(time, BLOCK)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks


@triton.jit
def _load(pointer, stride_t, rows, time, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of one head, (rows, BLOCK_D), zero beyond ``time`` and ``WIDTH``."""
    columns = tl.arange(0, BLOCK_D)
    inside = rows[:, None] < time
    if BLOCK_D != WIDTH:
        inside = inside & (columns[None, :] < WIDTH)
    return tl.load(pointer + rows[:, None] * stride_t + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, stride_t, rows, time, values, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    inside = rows[:, None] < time
    if BLOCK_D != WIDTH:
        inside = inside & (columns[None, :] < WIDTH)
    pointers = pointer + rows[:, None] * stride_t + columns[None, :]
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=inside)


@kernel(*QKV, "out_ptr", "WIDTH")
def _forward_kernel(
    q_ptr,  # (B, H, T, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    out_ptr,  # (B, T, H, D)
    lse_ptr,  # (B, H, T) float32
    seed_ptr,  # (1,) int64
    q_stride_b,
    q_stride_h,
    q_stride_t,
    kv_stride_b,
    kv_stride_h,
    kv_stride_t,
    heads,
    time,
    scale,
    threshold,
    keep_scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    head, block = _place(time, ROWS)
    block = tl.cdiv(time, ROWS) - 1 - block  # the rows with the most keys first
    kv_head = head // heads * kv_stride_b + head % heads * kv_stride_h
    k_ptr += kv_head
    v_ptr += kv_head
    out_stride_t = heads * WIDTH
    out_ptr += head // heads * time * out_stride_t + head % heads * WIDTH
    rows = block * ROWS + tl.arange(0, ROWS)
    q_ptr += head // heads * q_stride_b + head % heads * q_stride_h
    q = _load(q_ptr, q_stride_t, rows, time, WIDTH, BLOCK_D)
    keys = rows
    if DROPOUT:
        keys = row_keys(seed_ptr, head * time + rows)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    # exp is computed by exp2, which the hardware has.
    scale_log2 = scale * LOG2_E
    for first in range(0, tl.minimum((block + 1) * ROWS, time), COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        k = _load(k_ptr, kv_stride_t, columns, time, WIDTH, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(columns[None, :] <= rows[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        weights = tl.math.exp2(scores * scale_log2 - new_highest[:, None])
        shrink = tl.math.exp2(highest - new_highest)
        highest = new_highest
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights = tl.where(keep(keys[:, None], columns[None, :], threshold), weights, 0.0)
        v = _load(v_ptr, kv_stride_t, columns, time, WIDTH, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    if DROPOUT:
        acc *= keep_scale
    _store(out_ptr, out_stride_t, rows, time, acc / total[:, None], WIDTH, BLOCK_D)
    tl.store(lse_ptr + head * time + rows, highest / LOG2_E + tl.log(total), mask=rows < time)


@kernel(*QKV, "d_out_ptr", "out_ptr", "d_q_ptr", "WIDTH")
def _dq_kernel(
    q_ptr,  # (B, H, T, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    d_out_ptr,  # (B, T, H, D)
    out_ptr,  # (B, T, H, D)
    d_q_ptr,  # (B, T, H, D)
    lse_ptr,  # (B, H, T) float32
    delta_ptr,  # (B, H, T) float32, written here: each row's sum of d_out * out
    seed_ptr,  # (1,) int64
    q_stride_b,
    q_stride_h,
    q_stride_t,
    kv_stride_b,
    kv_stride_h,
    kv_stride_t,
    heads,
    time,
    scale,
    threshold,
    keep_scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    head, block = _place(time, ROWS)
    block = tl.cdiv(time, ROWS) - 1 - block
    kv_head = head // heads * kv_stride_b + head % heads * kv_stride_h
    k_ptr += kv_head
    v_ptr += kv_head
    out_stride_t = heads * WIDTH
    out_head = head // heads * time * out_stride_t + head % heads * WIDTH
    rows = block * ROWS + tl.arange(0, ROWS)
    q_ptr += head // heads * q_stride_b + head % heads * q_stride_h
    q = _load(q_ptr, q_stride_t, rows, time, WIDTH, BLOCK_D)
    d_out = _load(d_out_ptr + out_head, out_stride_t, rows, time, WIDTH, BLOCK_D)
    out = _load(out_ptr + out_head, out_stride_t, rows, time, WIDTH, BLOCK_D)
    delta = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + head * time + rows, delta, mask=rows < time)
    lse_log2 = tl.load(lse_ptr + head * time + rows, mask=rows < time, other=0.0) * LOG2_E
    keys = rows
    if DROPOUT:
        keys = row_keys(seed_ptr, head * time + rows)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    scale_log2 = scale * LOG2_E
    for first in range(0, tl.minimum((block + 1) * ROWS, time), COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        k = _load(k_ptr, kv_stride_t, columns, time, WIDTH, BLOCK_D)
        v = _load(v_ptr, kv_stride_t, columns, time, WIDTH, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        weights = tl.math.exp2(scores - lse_log2[:, None])
        weights = tl.where(columns[None, :] <= rows[:, None], weights, 0.0)
        d_weights = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        if DROPOUT:
            kept = keep(keys[:, None], columns[None, :], threshold)
            d_weights = tl.where(kept, d_weights * keep_scale, 0.0)
        d_scores = weights * (d_weights - delta[:, None])
        acc = tl.dot(d_scores.to(k.dtype), k, acc, input_precision="ieee")
    _store(d_q_ptr + out_head, out_stride_t, rows, time, acc * scale, WIDTH, BLOCK_D)


@kernel(*QKV, "d_out_ptr", "d_k_ptr", "d_v_ptr", "WIDTH")
def _dkv_kernel(
    q_ptr,  # (B, H, T, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    d_out_ptr,  # (B, T, H, D)
    d_k_ptr,  # (B, T, H, D)
    d_v_ptr,  # (B, T, H, D)
    lse_ptr,  # (B, H, T) float32
    delta_ptr,  # (B, H, T) float32
    seed_ptr,  # (1,) int64
    q_stride_b,
    q_stride_h,
    q_stride_t,
    kv_stride_b,
    kv_stride_h,
    kv_stride_t,
    heads,
    time,
    scale,
    threshold,
    keep_scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    # Everything is transposed: the rows of a block of scores are keys, its columns queries.
    head, block = _place(time, ROWS)
    kv_head = head // heads * kv_stride_b + head % heads * kv_stride_h
    q_ptr += head // heads * q_stride_b + head % heads * q_stride_h
    out_stride_t = heads * WIDTH
    out_head = head // heads * time * out_stride_t + head % heads * WIDTH
    d_out_ptr += out_head
    lse_ptr += head * time
    delta_ptr += head * time
    rows = block * ROWS + tl.arange(0, ROWS)
    k = _load(k_ptr + kv_head, kv_stride_t, rows, time, WIDTH, BLOCK_D)
    v = _load(v_ptr + kv_head, kv_stride_t, rows, time, WIDTH, BLOCK_D)
    d_k = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_v = tl.zeros((ROWS, BLOCK_D), tl.float32)
    scale_log2 = scale * LOG2_E
    for first in range(block * ROWS, time, COLUMNS):  # earlier queries do not see these keys
        columns = first + tl.arange(0, COLUMNS)
        q = _load(q_ptr, q_stride_t, columns, time, WIDTH, BLOCK_D)
        d_out = _load(d_out_ptr, out_stride_t, columns, time, WIDTH, BLOCK_D)
        lse_log2 = tl.load(lse_ptr + columns, mask=columns < time, other=0.0) * LOG2_E
        delta = tl.load(delta_ptr + columns, mask=columns < time, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2
        weights = tl.math.exp2(scores - lse_log2[None, :])
        weights = tl.where(rows[:, None] <= columns[None, :], weights, 0.0)
        d_weights = tl.dot(v, tl.trans(d_out), input_precision="ieee")
        dropped = weights
        if DROPOUT:
            kept = keep(row_keys(seed_ptr, head * time + columns)[None, :], rows[:, None], threshold)
            dropped = tl.where(kept, weights * keep_scale, 0.0)
            d_weights = tl.where(kept, d_weights * keep_scale, 0.0)
        d_v = tl.dot(dropped.to(d_out.dtype), d_out, d_v, input_precision="ieee")
        d_scores = weights * (d_weights - delta[None, :])
        d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision="ieee")
    _store(d_k_ptr + out_head, out_stride_t, rows, time, d_k * scale, WIDTH, BLOCK_D)
    _store(d_v_ptr + out_head, out_stride_t, rows, time, d_v, WIDTH, BLOCK_D)

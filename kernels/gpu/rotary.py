"""Triton: queries and keys rotated by their positions, forward and backward (Su et al. 2021, "RoFormer").

One launch splits q, k and v and rotates the first two; in the backward pass, one launch rotates their gradients back
and packs all three. A program owns some heads of one position, whose cosines and sines it reads once.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import block_sizes
from kernels.gpu.launch import Kernel, kernel
from kernels.layouts import as_heads, empty_heads

ALIGNED = ("packed_ptr", "q_ptr", "k_ptr", "v_ptr", "cos_ptr", "sin_ptr", "WIDTH")


def forward(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``kernels.reference.rotary_forward`` with a kernel."""
    like = qkv[:, :, 0].transpose(1, 2)
    q, k, v = empty_heads(like), empty_heads(like), empty_heads(like)
    _launch(_forward_kernel, qkv.contiguous(), q, k, v, cos, sin)
    return q, k, v


def backward(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute ``kernels.reference.rotary_backward`` with a kernel."""
    batch, heads, time, width = d_q.shape
    d_qkv = d_q.new_empty(batch, time, 3, heads, width)
    _launch(_backward_kernel, d_qkv, as_heads(d_q), as_heads(d_k), as_heads(d_v), cos, sin)
    return d_qkv


def _launch(function: Kernel, packed: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> None:
    batch, heads, time, width = q.shape
    tile = block_sizes.rotary(triton.next_power_of_2(width // 2))
    function.launch(
        batch * time * triton.cdiv(heads, tile.rows),
        tile,
        {
            "packed_ptr": packed,
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": v,
            "cos_ptr": cos.contiguous(),
            "sin_ptr": sin.contiguous(),
            "heads": heads,
            "time": time,
            "WIDTH": width,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
    )


@triton.jit
def _place(heads, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return this program's row of B x T, the offsets of its heads' first halves, and which of them are inside."""
    blocks = tl.cdiv(heads, ROWS)
    program = tl.program_id(0)
    head = program % blocks * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (head[:, None] < heads) & (column[None, :] < WIDTH // 2)
    return (program // blocks).to(tl.int64), head[:, None] * WIDTH + column[None, :], inside


@triton.jit
def _angles(cos_ptr, sin_ptr, position, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    offsets = position * (WIDTH // 2) + column
    cos = tl.load(cos_ptr + offsets, mask=column < WIDTH // 2, other=0.0)
    sin = tl.load(sin_ptr + offsets, mask=column < WIDTH // 2, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _turn(source, target, offsets, inside, cos, sin, HALF: tl.constexpr):
    """Read both halves of some heads from ``source``, rotate them, and write them to ``target``."""
    a = tl.load(source + offsets, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + offsets + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + offsets, (a * cos - b * sin).to(target.dtype.element_ty), mask=inside)
    tl.store(target + offsets + HALF, (b * cos + a * sin).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _copy(source, target, offsets, inside, HALF: tl.constexpr):
    tl.store(target + offsets, tl.load(source + offsets, mask=inside), mask=inside)
    tl.store(target + offsets + HALF, tl.load(source + offsets + HALF, mask=inside), mask=inside)


@kernel(*ALIGNED)
def _forward_kernel(
    packed_ptr,  # (B, T, 3, H, D)
    q_ptr,  # (B, T, H, D)
    k_ptr,  # (B, T, H, D)
    v_ptr,  # (B, T, H, D)
    cos_ptr,  # (T, D / 2) float32
    sin_ptr,  # (T, D / 2) float32
    heads,
    time,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, offsets, inside = _place(heads, WIDTH, ROWS, COLUMNS)
    cos, sin = _angles(cos_ptr, sin_ptr, row % time, WIDTH, COLUMNS)
    channels = heads * WIDTH
    packed_ptr += row * 3 * channels
    _turn(packed_ptr, q_ptr + row * channels, offsets, inside, cos, sin, WIDTH // 2)
    _turn(packed_ptr + channels, k_ptr + row * channels, offsets, inside, cos, sin, WIDTH // 2)
    _copy(packed_ptr + 2 * channels, v_ptr + row * channels, offsets, inside, WIDTH // 2)


@kernel(*ALIGNED)
def _backward_kernel(
    packed_ptr,  # (B, T, 3, H, D), written here
    q_ptr,  # (B, T, H, D), a gradient, like k and v
    k_ptr,  # (B, T, H, D)
    v_ptr,  # (B, T, H, D)
    cos_ptr,  # (T, D / 2) float32
    sin_ptr,  # (T, D / 2) float32
    heads,
    time,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, offsets, inside = _place(heads, WIDTH, ROWS, COLUMNS)
    cos, sin = _angles(cos_ptr, sin_ptr, row % time, WIDTH, COLUMNS)
    channels = heads * WIDTH
    packed_ptr += row * 3 * channels
    _turn(q_ptr + row * channels, packed_ptr, offsets, inside, cos, -sin, WIDTH // 2)
    _turn(k_ptr + row * channels, packed_ptr + channels, offsets, inside, cos, -sin, WIDTH // 2)
    _copy(v_ptr + row * channels, packed_ptr + 2 * channels, offsets, inside, WIDTH // 2)

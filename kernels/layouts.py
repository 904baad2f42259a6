"""The memory layouts of results, where the matrix products that read them prefer another than PyTorch's default."""

from torch import Tensor

ALIGNMENT = 16  # bytes for an address and elements for a stride, as in Triton's compiler


def empty_heads(q: Tensor) -> Tensor:
    """Return an empty (B, H, T, D) stored as (B, T, H, D), which the projection after attention need not copy."""
    batch, heads, time, width = q.shape
    return q.new_empty(batch, time, heads, width).transpose(1, 2)


def as_heads(x: Tensor) -> Tensor:
    """Return ``x``, (B, H, T, D), stored as (B, T, H, D): a copy unless it is stored so already."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_padded(logits: Tensor) -> Tensor:
    """Return an empty (N, V) whose rows begin at multiples of ``ALIGNMENT``, as matrix products prefer them."""
    rows, vocab = logits.shape
    return logits.new_empty(rows, -(-vocab // ALIGNMENT) * ALIGNMENT)[:, :vocab]

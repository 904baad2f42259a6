"""How results lie in memory, where the matrix products behind them prefer it to PyTorch's default."""

from torch import Tensor

ALIGNMENT = 16  # bytes of an address, and elements of a stride, as Triton's compiler counts both


def empty_heads(q: Tensor) -> Tensor:
    """An empty (B, H, T, D) that lies as (B, T, H, D), which the projection behind attention reads as it is."""
    batch, heads, time, width = q.shape
    return q.new_empty(batch, time, heads, width).transpose(1, 2)


def as_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) that lies as (B, T, H, D): a copy where it does not already."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_padded(logits: Tensor) -> Tensor:
    """An empty (N, V) whose rows begin at multiples of ``ALIGNMENT``, as matrix products want them."""
    rows, vocab = logits.shape
    return logits.new_empty(rows, -(-vocab // ALIGNMENT) * ALIGNMENT)[:, :vocab]

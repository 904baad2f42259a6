"""Dropout masks for the CPU, several times as fast as PyTorch's own generator makes them (NOTES.md)."""

import math

import torch
from torch import Tensor

SEEDS = 2**16  # words of 64 bits that advance together: half a megabyte, which stays in a core's cache
LEVELS = 2**16  # of a probability


class Masks:
    """Draws masks of elements that stay, each dropped with the same probability.

    The seeds are PyTorch's generator's. Each word then goes its way by xorshift (Marsaglia 2003), and four elements
    take 16 bits each from one word: any two of them, thousands of draws apart, are independent.

    Args:
        dropout_p: below 1; rounded to ``LEVELS``.
        count: elements of the largest mask.
    """

    def __init__(self, dropout_p: float, count: int) -> None:
        dropped = min(round(dropout_p * LEVELS), LEVELS - 1)
        self.scale = LEVELS / (LEVELS - dropped)  # makes up for what is dropped
        self._least = dropped - LEVELS // 2
        self._words = torch.empty(max(1, min(SEEDS, -(-count // 4))), dtype=torch.int64).random_(-(2**63), None)
        self._spare = torch.empty_like(self._words)

    def draw(self, shape: torch.Size) -> Tensor:
        """1 for what stays and 0 for what does not, int16."""
        count = math.prod(shape)
        rows = torch.empty(-(-count // (4 * len(self._words))), len(self._words), dtype=torch.int64)
        words = self._words
        for row in rows:
            words = _xorshift(words, row, self._spare)
        self._words = words.clone()
        numbers = rows.view(-1).view(torch.int16)[:count].view(shape)
        return torch.ge(numbers, self._least, out=numbers)


def _xorshift(words: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """The words that follow ``words``, in ``out``.

    Shifts of 21, 35 and 4: the better known 13, 7 and 17 leave numbers of a word and the next depending on one another.
    """
    torch.bitwise_left_shift(words, 21, out=out).bitwise_xor_(words)
    torch.bitwise_right_shift(out, 35, out=spare).bitwise_and_(2**29 - 1)  # without the sign's copies
    out.bitwise_xor_(spare)
    torch.bitwise_left_shift(out, 4, out=spare)
    return out.bitwise_xor_(spare)

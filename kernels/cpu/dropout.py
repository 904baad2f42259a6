"""Dropout masks for the CPU, many times as fast as PyTorch's own generator makes them (NOTES.md)."""

import math
from functools import cache

import torch
from torch import Tensor

LEVELS = 2**16  # of a probability
LARGEST = 2**20  # elements of a mask
PLACES = 2**20  # in a table, from which a mask can begin


class Masks:
    """Draws masks of elements that stay, each dropped with the same probability.

    An element is decided by the sum, without carries, of a number from each of two tables, which are always the same;
    where in them a mask begins is PyTorch's generator's to say. All elements of a mask, and of any two, are independent
    of one another, unless the two places of both are the same distance apart, as in one pair in 1.6 million, and they
    overlap. (Six elements of three masks may depend on one another.)

    Args:
        dropout_p: below 1; rounded to ``LEVELS``.
    """

    def __init__(self, dropout_p: float) -> None:
        dropped = min(round(dropout_p * LEVELS), LEVELS - 1)
        self.scale = LEVELS / (LEVELS - dropped)  # makes up for what is dropped
        self._least = dropped - LEVELS // 2

    def draw(self, shape: torch.Size) -> Tensor:
        """1 for what stays and 0 for what does not, int16; of ``LARGEST`` elements at the most."""
        count = math.prod(shape)
        assert count <= LARGEST, "more than a table holds"
        (first, second), (i, j) = _tables(), torch.randint(PLACES, (2,)).tolist()
        numbers = first[i : i + count] ^ second[j : j + count]
        return torch.ge(numbers, self._least, out=numbers).view(shape)


@cache
def _tables() -> Tensor:
    """Two of uniform numbers of 16 bits."""
    numbers = torch.empty(2, (PLACES + LARGEST) // 4, dtype=torch.int64)
    return numbers.random_(-(2**63), None, generator=torch.Generator().manual_seed(0)).view(torch.int16)

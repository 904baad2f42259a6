"""Dropout masks for the CPU, many times as fast as PyTorch's own generator makes them (docs/lab/cpu-speed.md)."""

import math
from functools import cache

import torch
from torch import Tensor

LEVELS = 2**16  # of a probability
MAX_ELEMENTS = 2**20  # of a mask
PLACES = 2**20  # in a table, from which a mask can begin
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class Masks:
    """Draws masks of elements that stay, each dropped with the same probability.

    An element is decided by the sum, without carries, of a number from each of two tables, which are always the same;
    PyTorch's generator says where in them a mask begins. All elements of a mask, and of any two, are independent
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
        """Return a mask, int16, with 1 for what stays and 0 for what does not, of at most ``MAX_ELEMENTS``."""
        count = math.prod(shape)
        assert count <= MAX_ELEMENTS, "more than a table holds"
        (first, second), (i, j) = _tables(), torch.randint(PLACES, (2,)).tolist()
        numbers = first[i : i + count] ^ second[j : j + count]
        return torch.ge(numbers, self._least, out=numbers).view(shape)


def as_integers(x: Tensor) -> Tensor:
    """Return the bits of floating-point ``x`` as integers of the same size, on which masking is faster."""
    return x.view(INTEGERS[x.itemsize])


@cache
def _tables() -> Tensor:
    """Return two tables of uniform numbers of 16 bits."""
    numbers = torch.empty(2, (PLACES + MAX_ELEMENTS) // 4, dtype=torch.int64)
    return numbers.random_(-(2**63), None, generator=torch.Generator().manual_seed(0)).view(torch.int16)

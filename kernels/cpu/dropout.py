"""Dropout masks for the CPU, drawn many times as fast as by PyTorch's own generator (docs/lab/cpu-speed.md)."""

import math
from functools import cache

import torch
from torch import Tensor

LEVELS = 2**16  # steps of a probability
MAX_ELEMENTS = 2**20  # in a mask
PLACES = 2**20  # in a table where a mask can begin
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


class Masks:
    """Draws masks of the elements that stay; each element is dropped with the same probability.

    An element is decided by the XOR of two numbers, one from each of two tables, which are always the same; PyTorch's
    generator chooses where in them a mask begins. All elements of one mask, or of any two, are independent of one
    another, unless the two masks overlap and are the same distance apart in both tables, as in one pair in 1.6 million.
    (Six elements of three masks may depend on one another.)

    Args:
        dropout_p: below 1; rounded to a multiple of 1 / ``LEVELS``.
    """

    def __init__(self, dropout_p: float) -> None:
        dropped = min(round(dropout_p * LEVELS), LEVELS - 1)
        self.scale = LEVELS / (LEVELS - dropped)  # compensates for what is dropped
        self._least = dropped - LEVELS // 2

    def draw(self, shape: torch.Size) -> Tensor:
        """Return an int16 mask of at most ``MAX_ELEMENTS``, with 1 for what stays and 0 for what is dropped."""
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
    """Return two tables of uniform 16-bit numbers."""
    numbers = torch.empty(2, (PLACES + MAX_ELEMENTS) // 4, dtype=torch.int64)
    return numbers.random_(-(2**63), None, generator=torch.Generator().manual_seed(0)).view(torch.int16)

"""The choice of the windows that a step trains on, and their tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charformer.device import copy_to_device


class WindowOrder:
    """The order of windows in passes over the text: each pass covers it once, with other cuts and in another order.

    The rest at the ends of a pass, less than two windows, is covered by other passes, but less often.

    A pass depends only on the seed and its number: a resumed run needs to know only how many windows it has drawn.
    If windows were drawn independently, much of the text would stay unseen after as many characters as the text has
    (docs/lab/training.md).

    Args:
        characters: the length of the text, more than ``length``.
        length: the length of a window, without the one more character that is the target of its last character.
    """

    def __init__(self, characters: int, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._count = max(1, (characters - length) // length)
        self._spare = characters - 1 - self._count * length
        self._pass = (-1, np.zeros(0, np.int64))

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Return where the windows ``first`` to ``first + count - 1`` of the training begin, (count,)."""
        numbers = np.arange(first, first + count)
        passes = numbers // self._count
        parts = [self._starts_of(number)[numbers[passes == number] % self._count] for number in np.unique(passes)]
        return np.concatenate(parts)

    def _starts_of(self, number: int) -> NDArray[np.int64]:
        if self._pass[0] != number:
            generator = np.random.default_rng((self._seed, number))
            cut = generator.integers(self._spare + 1)
            self._pass = (number, cut + self._length * generator.permutation(self._count))
        return self._pass[1]


class Windows:
    """Cuts windows out of the ids of a text.

    Args:
        table: for each id of a text's alphabet, its id in the model's vocabulary.
        device: the device of the windows.
    """

    def __init__(self, table: NDArray[np.int64], device: torch.device) -> None:
        self._table = table
        self._device = device

    def __call__(
        self, ids: NDArray[Any], starts: NDArray[np.int64], length: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the ``length`` characters from each of ``starts``, (B,), and the character after them.

        Returns:
            (B, length + 1) int64 on the device: ``out``, which is overwritten, or a new tensor.
        """
        windows = torch.from_numpy(self._table[ids[starts[:, None] + np.arange(length + 1)]])
        return copy_to_device(windows, self._device, out)

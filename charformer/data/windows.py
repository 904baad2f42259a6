"""Which windows of a text a step trains on, and those windows as tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class WindowOrder:
    """Windows in passes over the text: each pass goes over it once, cut elsewhere and in another order.

    What is left over at its ends, less than two windows, has its turn in other passes, if less often.

    A pass follows from the seed and its number alone: a resumed run needs to know only how many windows it has drawn.
    Drawn independently instead, a third of the text would go unseen while as much as all of it is read
    (docs/lab/training.md).

    Args:
        characters: of the text, more than ``length``.
        length: of a window, to which belongs one more character, the last one's target.
    """

    def __init__(self, characters: int, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._count = max(1, (characters - length) // length)
        self._spare = characters - 1 - self._count * length
        self._pass = (-1, np.zeros(0, np.int64))

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Where the windows ``first`` to ``first + count - 1`` of the training begin, (count,)."""
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
    """Cuts windows out of ids.

    Args:
        table: for each id of a text's alphabet, its id in the model's vocabulary.
        device: where the windows are wanted.
    """

    def __init__(self, table: NDArray[np.int64], device: torch.device) -> None:
        self._table = table
        self._device = device

    def __call__(
        self, ids: NDArray[Any], starts: NDArray[np.int64], length: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the ``length`` characters from each of ``starts``, (B,), and the character behind them.

        Returns:
            (B, length + 1) int64 on the device: ``out``, which is overwritten, or a new tensor.
        """
        windows = torch.from_numpy(self._table[ids[starts[:, None] + np.arange(length + 1)]])
        if self._device.type == "cuda":
            windows = windows.pin_memory()  # PyTorch keeps it until the copy is done, so nothing here waits
        if out is not None:
            return out.copy_(windows, non_blocking=True)
        return windows.to(self._device, non_blocking=True)

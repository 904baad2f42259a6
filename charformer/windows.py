"""Windows of a text as tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Windows:
    """Cuts windows out of ids.

    Args:
        table: for each id of a text's alphabet, its id in the model's vocabulary.
        device: where the windows are wanted.
    """

    def __init__(self, table: NDArray[np.int64], device: torch.device) -> None:
        self._table = table
        self._device = device

    def __call__(self, ids: NDArray[Any], starts: NDArray[np.int64], length: int) -> torch.Tensor:
        """Each of ``length`` characters from ``starts``, (B,), and the character behind them: (B, length + 1) int64."""
        windows = torch.from_numpy(self._table[ids[starts[:, None] + np.arange(length + 1)]])
        if self._device.type == "cuda":
            windows = windows.pin_memory().to(self._device, non_blocking=True)
        return windows

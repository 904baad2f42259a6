"""The interface between sampling and the engines that compute logits."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.floating[Any]]


class Engine(Protocol):
    """An engine that computes next-character logits of B texts of equal length, which grow together.

    Returned logits are valid until the next call.
    """

    def read(self, ids: Ids, before: Ids | None = None) -> Logits:
        """Begin with ``ids``, (B, T <= block_size); return the logits at every position, (B, T, V).

        ``before``, (B, any T), is the text before ``ids``; only an n-gram prior reads it.
        """

    def start(self, ids: Ids) -> Logits:
        """Begin with the last ``block_size`` of ``ids``, (B, T); return the logits after them, (B, V)."""

    def extend(self, ids: Ids) -> Logits:
        """Append a character to each text, (B, 1); return the logits after it, (B, 1, V)."""

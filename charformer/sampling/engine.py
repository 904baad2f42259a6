"""What sampling asks of whatever computes logits."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.floating[Any]]


class Engine(Protocol):
    """Next-character logits of B texts of one length, which grow together. Logits are good until the next call."""

    def read(self, ids: Ids, before: Ids | None = None) -> Logits:
        """Begin with ``ids``, (B, T <= block_size); return the logits at every position, (B, T, V).

        ``before``, (B, any T), is what comes before them, which an n-gram prior alone sees.
        """

    def start(self, ids: Ids) -> Logits:
        """Begin with ``ids``, (B, T), of which the last ``block_size`` count; return logits (B, V)."""

    def extend(self, ids: Ids) -> Logits:
        """Append a character to each text, (B, 1); return the logits behind it, (B, 1, V)."""

"""The n-gram rows that a model with a prior reads alongside the characters of growing texts."""

import numpy as np

from charformer.data.ngram import NgramTable, Rows
from charformer.sampling.engine import Ids

FEW = 32  # total characters up to which single lookups are faster than a batched one
KEPT = 64  # characters kept beyond the longest context: more than are ever rewound


class GrowingPrior:
    """The rows of an n-gram table after each new character of B growing texts."""

    def __init__(self, table: NgramTable) -> None:
        self._table = table
        self._text = np.zeros((0, 0), np.int64)

    def begin(self, before: Ids) -> None:
        """Forget all texts and start again after ``before``, (B, T), T >= 0."""
        self._text = before[:, max(0, before.shape[1] - self._table.order) :]

    def extend(self, ids: Ids) -> Rows:
        """Append (B, T) characters; return the next-character probabilities after each, (B, T, V) float32."""
        order, old = self._table.order, self._text.shape[1]
        text = np.concatenate([self._text, ids], axis=1)
        self._text = text[:, max(0, text.shape[1] - max(order + KEPT, ids.shape[1])) :]
        if ids.size <= FEW:
            rows = [
                [self._table.row(row[max(0, end - order) : end]) for end in range(old + 1, text.shape[1] + 1)]
                for row in text.tolist()
            ]
            return np.array(rows, np.float32)
        padded = np.concatenate([np.full((len(text), order), -1), text], axis=1)
        contexts = np.lib.stride_tricks.sliding_window_view(padded, order, axis=1) if order else padded[:, :, None]
        contexts = contexts[:, contexts.shape[1] - ids.shape[1] :]
        return self._table.rows(contexts.reshape(ids.size, -1)).reshape(*ids.shape, -1)

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` characters, at most ``KEPT`` of those last read."""
        self._text = self._text[:, : self._text.shape[1] - count]

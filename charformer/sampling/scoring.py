"""How well a model predicts a text: the log-probability that it gives to each of its characters."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charformer.sampling.engine import Engine, Ids


@dataclass(frozen=True)
class Score:
    """What a text costs a model.

    Attributes:
        per_character: (N,) float64, -log p of each character behind those before it, in nats.
    """

    per_character: NDArray[np.float64]

    @property
    def nats(self) -> float:
        """The mean of a character in nats, the unit of every loss here; nan for an empty text."""
        return float(self.per_character.mean()) if len(self.per_character) else math.nan

    @property
    def bits(self) -> float:
        """The mean of a character in bits."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """The number of equally likely characters that would be as hard to guess."""
        return math.exp(self.nats)


def score(engine: Engine, ids: Ids, first: int, block_size: int) -> Score:
    """Score the characters of ``ids``, (T,), from ``first`` >= 1 on, each behind at most ``block_size`` others.

    A text that is longer than the context is read in windows, of which each begins half a context behind the last, so
    that all but the first characters are seen behind half a context at least.
    """
    found = []
    begin, stride = 0, max(1, block_size // 2)
    while first < len(ids):
        end = min(begin + block_size, len(ids) - 1)
        if end < first:  # nothing to score in this window yet
            begin += stride
            continue
        logits = engine.read(ids[None, begin:end], ids[None, :begin])[0].astype(np.float64)
        rows = logits[first - 1 - begin :]
        targets = ids[first : end + 1]
        peak = rows.max(axis=-1)
        totals = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=-1))
        found.append(totals - rows[np.arange(len(targets)), targets])
        first = end + 1
        begin += stride
    return Score(np.concatenate(found) if found else np.zeros(0))

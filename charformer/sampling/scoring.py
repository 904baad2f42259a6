"""The score of a text: the log-probability that a model assigns to each of its characters."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charformer.sampling.engine import Engine, Ids


@dataclass(frozen=True)
class Score:
    """The losses of a text's characters under a model.

    Attributes:
        per_character: -log p of each character given those before it, in nats, (N,) float64.
    """

    per_character: NDArray[np.float64]

    @property
    def nats(self) -> float:
        """Return the mean per character in nats, the unit of every loss here; nan for an empty text."""
        return float(self.per_character.mean()) if len(self.per_character) else math.nan

    @property
    def bits(self) -> float:
        """Return the mean per character in bits."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """Return the perplexity: the number of equally likely characters that would be as hard to guess."""
        return math.exp(self.nats)


def score(engine: Engine, ids: Ids, first: int, block_size: int) -> Score:
    """Score the characters of ``ids``, (T,), from ``first`` >= 1 on, each after at most ``block_size`` others.

    A text longer than the context is read in windows, each of which begins half a context after the previous one. All
    characters but the first ones are therefore scored after at least half a context.
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

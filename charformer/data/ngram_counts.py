"""The counts of a text's n-grams, and the interpolated Kneser-Ney table from them (charformer/data/ngram.py)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charformer.data.ngram import ARRAYS, BACKOFF_STEPS, LONGEST, SHARE_STEPS, NgramTable

Ids = NDArray[np.integer[Any]]
Keys = NDArray[np.int64]

DISCOUNTS = (0.5, 0.6, 0.8, 0.85, 0.9, 0.92, 0.95, 0.95, 0.95)  # by the length of the context
PIECE = 1 << 22  # characters to count at once
MIN_GAIN = 0.25  # nats over the whole text; contexts that gain less are left out
MAX_NGRAMS = 1 << 23  # the most distinct n-grams of the longest context to keep of a text, all its folds together


@dataclass(frozen=True)
class Counts:
    """The number of times that each string of ``order`` + 1 characters occurs in a text.

    Attributes:
        vocab_size: V.
        order: K, the number of characters of a context.
        keys: (N,) int64, ascending: a string as a number of K + 1 digits in base V, the nearest character of the
            context first, then those further back, and last the character after the context.
        counts: (N,) int64.
        dropped: the strings that were dropped to save memory, without the first character of their contexts: for each
            of these shorter strings, how often one was dropped. None if nothing was.
    """

    vocab_size: int
    order: int
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    dropped: "Counts | None" = None

    def without(self, other: "Counts") -> "Counts":
        """Return these counts minus those of ``other``, a part of the same text, without counts that become zero."""
        place = np.searchsorted(self.keys, other.keys)
        found = self.keys[np.minimum(place, len(self.keys) - 1)] == other.keys if len(self.keys) else place < 0
        counts = self.counts.copy()
        counts[place[found]] -= other.counts[found]
        kept = counts > 0
        dropped = self.dropped.without(other.dropped) if self.dropped and other.dropped else self.dropped
        return Counts(self.vocab_size, self.order, self.keys[kept], counts[kept], dropped)


def longest_context(order: int, vocab_size: int) -> int:
    """Return ``order``, or the length of the longest context whose n-grams fit in 63 bits if that is less."""
    order = min(order, LONGEST)
    while vocab_size ** (order + 1) >= 2**63:
        order -= 1
    return order


def count(
    ids: Ids, vocab_size: int, order: int, table: NDArray[np.int64] | None = None, most: int = MAX_NGRAMS
) -> Counts:
    """Count the strings of ``order`` + 1 characters of a text, in pieces.

    Args:
        ids: (N,), possibly a memory-mapped file.
        vocab_size: V, which must allow ``order`` by ``longest_context``.
        table: for each id, its number below ``vocab_size``; None leaves the ids unchanged.
        most: the most distinct strings to keep; if there are more, the rarest are dropped along the way, and count for
            the shorter strings in them alone, of which a quarter as many are kept of each length.
    """
    found = Counts(vocab_size, order, np.zeros(0, np.int64), np.zeros(0, np.int64))
    for start in range(0, max(0, len(ids) - order), PIECE):
        piece = ids[start : start + PIECE + order]
        numbers = np.asarray(piece if table is None else table[piece], dtype=np.int64)
        found = _within(merged([found, _counted(numbers, vocab_size, order)]), most, most // 4)
    return found


def _counted(ids: NDArray[np.int64], vocab_size: int, order: int) -> Counts:
    length = len(ids) - order
    keys = np.zeros(length, np.int64)
    for back in range(1, order + 1):
        keys *= vocab_size
        keys += ids[order - back : order - back + length]
    keys *= vocab_size
    keys += ids[order:]
    keys.sort()
    return Counts(vocab_size, order, *_runs(keys))


def _runs(rising: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct numbers of an ascending array, and how often each occurs."""
    starts = _starts(rising)
    return rising[starts], np.diff(starts, append=len(rising))


def _starts(rising: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each run of equal numbers begins."""
    if not len(rising):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], rising[1:] != rising[:-1]]))


def merged(parts: list[Counts]) -> Counts:
    """Return the sum of one or more counts of the same vocabulary and order."""
    filled = [part for part in parts if len(part.keys)]
    if len(filled) < 2:
        return (filled or parts)[0]
    keys = np.concatenate([part.keys for part in filled])
    counts = np.concatenate([part.counts for part in filled])
    order = np.argsort(keys, kind="stable")  # a stable sort merges the sorted parts
    keys, counts = keys[order], counts[order]
    starts = _starts(keys)
    dropped = [part.dropped for part in filled if part.dropped]
    return Counts(
        parts[0].vocab_size,
        parts[0].order,
        keys[starts],
        np.add.reduceat(counts, starts),
        merged(dropped) if dropped else None,
    )


def _within(counts: Counts, most: int, most_dropped: int) -> Counts:
    """Return the counts with the rarest dropped, so that ``most`` remain.

    Of each shorter length ``most_dropped`` are kept for those that were dropped.
    """
    excess = len(counts.keys) - most
    if excess <= 0 or not counts.order:
        return counts
    # Strings that occur equally often are dropped by a hash, because those of some contexts alone would bias these.
    hashes = (counts.keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    ranks = (counts.counts.astype(np.uint64) << np.uint64(24)) + hashes
    kept = ranks >= np.partition(ranks, excess)[excess]
    shorter = np.sort(_shortened(counts.keys[~kept], counts.vocab_size))
    dropped = Counts(counts.vocab_size, counts.order - 1, *_runs(shorter))
    if counts.dropped:
        dropped = merged([counts.dropped, dropped])
    return Counts(
        counts.vocab_size,
        counts.order,
        counts.keys[kept],
        counts.counts[kept],
        _within(dropped, most_dropped, most_dropped),
    )


def fold_bounds(characters: int, folds: int) -> list[tuple[int, int]]:
    """Return where each of ``folds`` contiguous parts of a text begins and ends."""
    edges = [characters * fold // folds for fold in range(folds + 1)]
    return list(pairwise(edges))


def build(counts: Counts, min_count: int = 1, min_gain: float = MIN_GAIN) -> NgramTable:
    """Return the table of interpolated Kneser-Ney probabilities.

    For a context c of k characters, p_k(x|c) = max(n_k(c, x) - D_k, 0) / N_k(c) + backoff * p_{k-1}(x | c without its
    first character), where n_K are the counts and, for k below K, n_k is the number of different characters that come
    before c x (Kneser & Ney 1995), N is the sum of n over x, D are the ``DISCOUNTS``, and p_{-1} = 1 / V. A string that
    was dropped counts in n_k each time that it was dropped.

    Args:
        min_count: n-grams that occur less often in the text are left out, for every length of context.
        min_gain: contexts are left out if they would raise the log-likelihood of the whole text by less than this, in
            nats, over their shorter contexts (Seymore & Rosenfeld 1996 leave out single n-grams, which suits Kneser-Ney
            badly).
    """
    if not len(counts.keys):
        nothing = {name: np.zeros(0 if name in ("following", "shares") else 1, kind) for name, kind in ARRAYS.items()}
        nothing["backoffs"][:] = BACKOFF_STEPS
        return NgramTable(counts.vocab_size, nothing)
    levels = _levels(counts, min_count)
    if min_gain > 0:
        gains = _gains(levels, counts.vocab_size)
        for level, gain in zip(levels[1:], gains[1:], strict=True):
            level.is_worth &= gain >= min_gain
    _prune(levels, counts.vocab_size)
    return NgramTable(counts.vocab_size, _arrays(levels, counts.vocab_size))


class _Level:
    """The n-grams whose contexts are of one length.

    Attributes:
        keys: (N,) int64, ascending, as in ``Counts``.
        shares: (N,) the part of each probability that does not come from the shorter context.
        weights: (N,) the n in ``build``: how often each n-gram occurs; in shorter contexts than the longest, how many
            different characters come before it.
        contexts: (C,) int64, ascending, the keys without their last digit.
        entries: (C,) the number of n-grams of each context.
        is_worth: (C,) whether to keep a context for its own gain.
    """

    def __init__(self, keys: Keys, numbers: Keys, base: int, discount: float) -> None:
        contexts = keys // base
        starts = _starts(contexts)
        self.keys, self.weights = keys, numbers
        self.contexts = contexts[starts]
        self.entries = np.diff(starts, append=len(keys))
        sums = np.add.reduceat(numbers, starts)
        self.shares = np.maximum(numbers - discount, 0) / np.repeat(sums, self.entries)
        self.is_worth = np.ones(len(starts), bool)

    def sum(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of the n-grams' values for each context, (C,)."""
        whose = np.repeat(np.arange(len(self.entries)), self.entries)
        return np.bincount(whose, weights=values, minlength=len(self.entries)).astype(np.float64)

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Keep only the n-grams chosen by ``which``, (N,)."""
        self.entries = self.sum(which).astype(np.int64)
        self.keys, self.shares, self.weights = self.keys[which], self.shares[which], self.weights[which]


def _levels(counts: Counts, min_count: int) -> list[_Level]:
    """Return the n-grams of every length of context, the empty context first."""
    base = counts.vocab_size
    keys, numbers, occurrences, dropped = counts.keys, counts.counts, counts.counts, counts.dropped
    levels = []
    for order in range(counts.order, -1, -1):
        level = _Level(keys, numbers, base, DISCOUNTS[order])
        levels.append(level)
        is_rare = occurrences < min_count
        if order:
            shorter = _shortened(keys, base)
            if min_count > 1:
                sorting = np.argsort(shorter, kind="stable")
                shorter, occurrences = shorter[sorting], occurrences[sorting]
                occurrences = np.add.reduceat(occurrences, _starts(shorter))
            else:
                shorter.sort()
            keys, numbers = _runs(shorter)
            if dropped is not None:
                more = Counts(base, order - 1, dropped.keys, dropped.counts)
                if min_count > 1:
                    occurrences = merged([Counts(base, order - 1, keys, occurrences), more]).counts
                total = merged([Counts(base, order - 1, keys, numbers), more])
                keys, numbers, dropped = total.keys, total.counts, dropped.dropped
            if min_count == 1:
                occurrences = numbers
        if is_rare.any():
            level.keep(~is_rare)
    return levels[::-1]


def _shortened(keys: Keys, base: int) -> Keys:
    """Return the keys of n-grams without the first character of their contexts, which must not be empty."""
    return keys // (base * base) * base + keys % base


def _gains(levels: list[_Level], base: int) -> list[NDArray[np.float64]]:
    """Return how much each context raises the log-likelihood of the text over its shorter context, in nats."""
    gains, keys, probabilities = [], np.zeros(0, np.int64), np.zeros(0)
    for order, level in enumerate(levels):
        below = np.full(len(level.keys), 1 / base)
        if order:
            shortened = _shortened(level.keys, base)
            place = np.minimum(np.searchsorted(keys, shortened), len(keys) - 1)
            below = probabilities[place]
        keys, probabilities = level.keys, level.shares + np.repeat(1 - level.sum(level.shares), level.entries) * below
        gains.append(level.sum(level.weights * np.log(probabilities / below)))
    return gains


def _prune(levels: list[_Level], base: int) -> None:
    """Remove the contexts that gain too little, unless a longer context that is kept needs them."""
    is_needed = np.zeros(len(levels[-1].contexts), bool)
    for order in range(len(levels) - 1, 0, -1):
        level = levels[order]
        kept = (level.is_worth & (level.entries > 0)) | is_needed
        level.keep(np.repeat(kept, level.entries))
        level.contexts, level.entries = level.contexts[kept], level.entries[kept]
        is_needed = np.zeros(len(levels[order - 1].contexts), bool)
        is_needed[np.searchsorted(levels[order - 1].contexts, level.contexts // base)] = True


def _arrays(levels: list[_Level], base: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``NgramTable``: the levels in breadth-first order."""
    children = []
    for level, longer in pairwise(levels):
        parents = np.searchsorted(level.contexts, longer.contexts // base)
        children.append(np.bincount(parents, minlength=len(level.contexts)))
    children.append(np.zeros(len(levels[-1].contexts), np.int64))
    entries = np.concatenate([level.entries for level in levels])
    shares = np.concatenate([level.shares for level in levels])
    backoffs = 1 - np.concatenate([level.sum(level.shares) for level in levels])
    filled = np.flatnonzero(entries)
    largest = np.maximum.reduceat(shares, (np.cumsum(entries) - entries)[filled])
    ratios = np.maximum(shares / np.repeat(largest, entries[filled]), 1e-9)
    arrays = {
        "characters": np.concatenate([level.contexts % base for level in levels]),
        "children": np.concatenate(children),
        "entries": entries,
        "backoffs": np.clip(np.rint(backoffs * BACKOFF_STEPS), 1, BACKOFF_STEPS),
        "following": np.concatenate([level.keys % base for level in levels]),
        "shares": np.minimum(np.rint(-SHARE_STEPS * np.log2(ratios)), 255),
    }
    return {name: array.astype(ARRAYS[name]) for name, array in arrays.items()}

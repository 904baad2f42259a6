"""A table of n-gram probabilities: for every context of up to K characters, how likely each next character is.

charformer/data/ngram_counts.py makes one from a text, by interpolated Kneser-Ney smoothing (Kneser & Ney 1995; Chen &
Goodman 1999). This module stores the table, reads it and looks up contexts, with NumPy alone.

The contexts form a tree. Its root is the empty context; the child ``c`` of a context adds ``c`` in front of it, one
character further back in the text. A lookup starts at the root and follows the text backwards as far as the tree
reaches, at most K characters. At each context on the way it changes the distribution p over the next character:

    p = backoff * p,   then for each stored next character x:   p[x] += (1 - backoff) * share[x] / (sum of the shares).

It begins with p = 1 / V for each of the V characters. Contexts that the tree lacks change nothing, so p always sums
to one.

Six arrays store the tree. Contexts are numbered breadth first: the root is 0, then come the contexts of one character,
sorted by that character, then those of two characters, sorted by their parents and then by the character in front.

    characters  (contexts,)  uint16  the character in front; 0 for the root
    children    (contexts,)  uint16  how many children a context has. Their numbers are consecutive, and the first is
                                     one plus the sum of ``children`` of all contexts before it
    entries     (contexts,)  uint16  how many next characters are stored; they begin at the sum of ``entries`` before
    backoffs    (contexts,)  uint16  backoff * 65535; never 0
    following   (entries,)   uint16  the next characters, in ascending order within a context
    shares      (entries,)   uint8   a share is 2 ** (-code / 16); only its ratio to the context's other shares matters

A port to another language needs the two running sums, a binary search among a context's children, and the formula.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charformer.errors import UserError

Rows = NDArray[np.float32]

MAX_CHARACTERS = 8192  # the largest vocabulary, because rows of probabilities are dense
LONGEST = 8  # the most characters of a context
FLOOR = 1e-12  # the smallest probability, because its logarithm is needed
BACKOFF_STEPS = 65535
SHARE_STEPS = 16  # per factor of two
DENSE_CELLS = 1 << 20  # the most cells of the rows of the shortest contexts, which are computed once
MAX_KEPT = 1 << 22  # the most cells of rows that single lookups keep
ARRAYS = {
    "characters": np.uint16,
    "children": np.uint16,
    "entries": np.uint16,
    "backoffs": np.uint16,
    "following": np.uint16,
    "shares": np.uint8,
}


class NgramTable:
    """A table of probabilities of the next character after up to ``order`` others; see the module for its arrays.

    Args:
        vocab_size: V, at most ``MAX_CHARACTERS``.
        arrays: the arrays named in ``ARRAYS``, by name.

    Raises:
        UserError: if the arrays do not form such a tree.
    """

    def __init__(self, vocab_size: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        _check(vocab_size, arrays)
        self.vocab_size = vocab_size
        self.arrays = dict(arrays)
        children, entries = arrays["children"].astype(np.int64), arrays["entries"].astype(np.int64)
        contexts = len(children)
        self._first_entry = np.concatenate([[0], np.cumsum(entries)])
        parents = np.repeat(np.arange(contexts), children)
        self._keys = parents * vocab_size + arrays["characters"][1:]  # sorted: children have the order of parents
        if (np.diff(self._keys) <= 0).any():
            raise UserError("the n-gram table's contexts are out of order")
        self._depth_ends = _depth_ends(children)
        self.order = len(self._depth_ends) - 1
        self._backoffs = (arrays["backoffs"] / np.float64(BACKOFF_STEPS)).astype(np.float32)
        self._following = arrays["following"]
        self._shares = _shares(arrays["shares"], entries, arrays["backoffs"])
        dense = [depth for depth, end in enumerate(self._depth_ends) if depth == 0 or end * vocab_size <= DENSE_CELLS]
        self._dense_depth = dense[-1]
        self._dense = self._dense_rows()
        self._dense_children = np.zeros(len(self._dense) * vocab_size, np.int32)  # 0 means no such child
        short = self._keys < len(self._dense_children)
        self._dense_children[self._keys[short]] = np.flatnonzero(short) + 1
        self._last_rows: dict[tuple[int, ...], Rows] = {}  # by the last characters, for past lookups
        self._kept: dict[int, Rows] = {}  # by the context
        self._children: dict[int, int] = {}  # by a key as in ``_keys``, for past lookups

    def __len__(self) -> int:
        """Return the number of n-grams: the stored next characters of all contexts."""
        return len(self._following)

    def bytes(self) -> int:
        """Return the bytes of memory that the table takes, without the rows that single lookups keep."""
        own = (self._first_entry, self._keys, self._backoffs, self._shares, self._dense, self._dense_children)
        return sum(array.nbytes for array in (*self.arrays.values(), *own))

    def contexts_of(self, text: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the number of the longest known context at the end of each row of ``text``, (N, K) -> (N,).

        A row's last character is the nearest one; a negative character ends the context early.
        """
        return self._walk(text)[0]

    def rows(self, text: NDArray[np.integer[Any]]) -> Rows:
        """Return the probabilities of the next character after each row of ``text``, (N, K) -> (N, V) float32.

        See ``contexts_of`` for the rows of ``text``. Each row of the result sums to one, apart from rounding, and no
        probability is below ``FLOOR``.
        """
        _, dense, steps = self._walk(text)
        rows = self._dense[dense]
        for which, contexts in steps:
            self._refine(rows, which, contexts)
        return np.maximum(rows, np.float32(FLOOR), out=rows)

    def row(self, text: list[int]) -> Rows:
        """Return the probabilities after one context, (V,) float32, as ``rows`` does; do not write to them.

        ``text`` may be longer than ``order``. Computed rows are kept for later calls, up to ``MAX_KEPT`` cells.
        """
        nearest = tuple(text[-self.order :]) if self.order else ()
        row = self._last_rows.get(nearest)
        if row is None:
            row = np.maximum(self._row(nearest), np.float32(FLOOR))
            if (len(self._kept) + len(self._last_rows)) * self.vocab_size > MAX_KEPT or len(self._children) > MAX_KEPT:
                self._last_rows.clear()
                self._kept.clear()
                self._children.clear()
            self._last_rows[nearest] = row
        return row

    def _row(self, text: tuple[int, ...]) -> Rows:
        """Return the row after ``text``, at most ``order`` characters, without ``FLOOR``; keep those on its way."""
        context, path = 0, [0]
        for character in reversed(text):
            context = self._child_of(context, character)
            if not context:
                break
            path.append(context)
        known = len(path) - 1
        while known > self._dense_depth and path[known] not in self._kept:
            known -= 1
        row = self._dense[path[known]] if known <= self._dense_depth else self._kept[path[known]]
        for context in path[known + 1 :]:
            first, end = self._first_entry.item(context), self._first_entry.item(context + 1)
            row = row * self._backoffs[context]
            if end - first == 1:  # the usual case, in which an array of indices would take ten times as long
                row[self._following[first]] += self._shares[first]
            else:
                row[self._following[first:end]] += self._shares[first:end]
            self._kept[context] = row
        return row

    def _child_of(self, context: int, character: int) -> int:
        """Return the context with one more character in front; 0 if the tree has none."""
        key = context * self.vocab_size + character
        if key < len(self._dense_children):
            return self._dense_children.item(key)
        child = self._children.get(key)
        if child is None:
            place = int(self._keys.searchsorted(key))
            child = place + 1 if place < len(self._keys) and self._keys.item(place) == key else 0
            self._children[key] = child
        return child

    def _walk(
        self, text: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Follow each row of ``text`` backwards through the tree.

        Returns the last context of each row, its last dense context, and for each greater depth the rows that reach it
        and the contexts that they reach.
        """
        found = np.zeros(len(text), np.int64)
        dense = found
        # In the order of their contexts, because a search for ascending keys takes half the time.
        alive = np.lexsort(text.T) if text.shape[1] else np.arange(len(text))
        steps = []
        for depth in range(1, min(self.order, text.shape[1]) + 1):
            character = text[alive, text.shape[1] - depth].astype(np.int64)
            child = self._children_of(found[alive], character, depth)
            known = child > 0
            alive, child = alive[known], child[known]
            if not len(alive):
                break
            if depth == self._dense_depth + 1:
                dense = found.copy()
            found[alive] = child
            if depth > self._dense_depth:
                steps.append((alive, child))
        return found, dense if steps else found, steps

    def _children_of(self, contexts: NDArray[np.int64], characters: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
        """Return the contexts with one more character in front, of length ``depth``; 0 where the tree has none."""
        keys = contexts * self.vocab_size + characters
        if keys.max(initial=0) < len(self._dense_children):
            return np.where(characters < 0, 0, self._dense_children[keys]).astype(np.int64)
        start, end = self._depth_ends[depth - 1], self._depth_ends[depth]
        candidates = self._keys[start - 1 : end - 1]
        place = np.searchsorted(candidates, keys)
        known = (candidates[np.minimum(place, len(candidates) - 1)] == keys) & (characters >= 0)
        return np.where(known, start + place, 0)

    def _refine(self, rows: Rows, which: NDArray[np.int64], contexts: NDArray[np.int64]) -> None:
        """Change ``rows[which]`` from the distributions of the contexts' parents to those of ``contexts``."""
        rows[which] *= self._backoffs[contexts, None]
        first = self._first_entry[contexts]
        counts = self._first_entry[contexts + 1] - first
        ends = np.cumsum(counts)
        entries = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
        cells = np.repeat(which * self.vocab_size, counts) + self._following[entries]
        rows.reshape(-1)[cells] += self._shares[entries]

    def _dense_rows(self) -> Rows:
        """Return the distributions of all contexts of at most ``_dense_depth`` characters."""
        ends = self._depth_ends
        rows = np.empty((ends[self._dense_depth], self.vocab_size), np.float32)
        rows[0] = self._backoffs[0] / self.vocab_size
        rows[0][self._following[: self._first_entry[1]]] += self._shares[: self._first_entry[1]]
        children = self.arrays["children"]
        for depth in range(1, self._dense_depth + 1):
            start, end = ends[depth - 1], ends[depth]
            parents = np.arange(ends[depth - 2] if depth > 1 else 0, start)
            rows[start:end] = rows[np.repeat(parents, children[parents])]
            self._refine(rows, np.arange(start, end), np.arange(start, end))
        return rows


def _check(vocab_size: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise UserError unless the arrays have the right types and sizes, and their numbers are in range."""
    if not 1 <= vocab_size <= MAX_CHARACTERS:
        raise UserError(f"an n-gram table takes 1 to {MAX_CHARACTERS:,} distinct characters, not {vocab_size:,}")
    types = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if types != {name: (np.dtype(kind), 1) for name, kind in ARRAYS.items()}:
        raise UserError("the n-gram table has other arrays than such a table")
    contexts = len(arrays["characters"])
    lengths_agree = all(len(arrays[name]) == contexts for name in ("children", "entries", "backoffs"))
    if not lengths_agree or not contexts or len(arrays["shares"]) != len(arrays["following"]):
        raise UserError("the n-gram table's arrays are not of one length")
    is_whole = int(arrays["children"].sum(dtype=np.int64)) == contexts - 1
    is_full = int(arrays["entries"].sum(dtype=np.int64)) == len(arrays["following"])
    inside = max(arrays["characters"].max(), arrays["following"].max(initial=0)) < vocab_size
    if not (is_whole and is_full and inside and arrays["backoffs"].min() > 0):
        raise UserError("the n-gram table's numbers are inconsistent")
    ends = np.cumsum(arrays["entries"].astype(np.int64))
    rises = np.diff(arrays["following"].astype(np.int64)) > 0
    rises[ends[(ends > 0) & (ends < len(arrays["following"]))] - 1] = True  # a new context may fall
    empty = (arrays["entries"] == 0) & (arrays["backoffs"] < BACKOFF_STEPS)
    if not rises.all() or empty.any():
        raise UserError("the n-gram table's next characters are out of order")


def _depth_ends(children: NDArray[np.int64]) -> list[int]:
    """Return where the contexts of each depth end. Raises UserError for no tree, or one deeper than ``LONGEST``."""
    ends, start, end = [1], 0, 1
    while (more := int(children[start:end].sum())) > 0:
        if len(ends) > LONGEST:
            raise UserError(f"the n-gram table has contexts of more than {LONGEST} characters")
        start, end = end, end + more
        ends.append(end)
    if end != len(children):
        raise UserError("the n-gram table's contexts are inconsistent")
    return ends


def _shares(codes: NDArray[np.uint8], entries: NDArray[np.int64], backoffs: NDArray[np.uint16]) -> Rows:
    """Return the amount that each entry adds to its character; a context's amounts and its backoff sum to one."""
    relative = 2.0 ** (-np.arange(256) / SHARE_STEPS)
    shares: NDArray[np.float64] = relative[codes]
    sums = np.bincount(np.repeat(np.arange(len(entries)), entries), weights=shares, minlength=len(entries))
    factors = (1 - backoffs / np.float64(BACKOFF_STEPS)) / np.maximum(sums, math.ulp(0.0))
    return (shares * np.repeat(factors, entries)).astype(np.float32)

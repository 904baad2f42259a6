"""The n-gram prior of a training: the tables counted for it, and their rows for windows of the text.

A training window must not see a table that has counted it, or the network would trust the prior too much. The training
split is therefore cut into contiguous folds, and the rows of each fold come from a table of all the others (stacked
generalisation, Wolpert 1992). Validation and sampling use the table of the whole split.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charformer.config import ModelConfig, TrainConfig
from charformer.data.cached import find_cached
from charformer.data.corpus import Corpus
from charformer.data.ngram import MAX_CHARACTERS, NgramTable
from charformer.data.ngram_counts import MAX_NGRAMS, Counts, build, count, fold_bounds, longest_context, merged
from charformer.data.vocab import Vocab
from charformer.device import copy_to_device
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord

MAX_ON_DEVICE = 2 << 30  # bytes of rows that a GPU keeps
ROWS_AT_ONCE = 1 << 14
LONG = 20_000_000  # characters of a text whose counting takes more than some seconds
MAX_BUILDERS = 4  # threads that make tables at once; each takes memory
SCORED = 1 << 15  # characters on which the tables of a fine-tune are compared

Positions = NDArray[np.int64]

log = logging.getLogger("charformer")


@dataclass(frozen=True)
class Tables:
    """The n-gram tables of a training.

    Attributes:
        whole: the table of all text that may be counted, for validation and sampling.
        folds: for each fold of the training split, a table that has not counted it.
        seconds: the time that counting took.
    """

    whole: NgramTable
    folds: list[NgramTable]
    seconds: float


def count_text(corpus: Corpus, vocab: Vocab, order: int) -> Counts:
    """Return the n-gram counts of the training split of ``corpus`` as one piece."""
    return count(corpus.train, len(vocab), longest_context(order, len(vocab)), corpus.table(vocab))


def count_folds(corpus: Corpus, vocab: Vocab, order: int, folds: int) -> list[Counts]:
    """Return the n-gram counts of each fold of the training split of ``corpus``."""
    characters, table = len(corpus.train), corpus.table(vocab)
    if characters > LONG:
        log.info("counting the n-grams of %s characters", f"{characters:,}")
    return [
        count(corpus.train[start:end], len(vocab), longest_context(order, len(vocab)), table, MAX_NGRAMS // folds)
        for start, end in fold_bounds(characters, folds)
    ]


def build_tables(folds: list[Counts], min_count: int, began: float, other: Counts | None = None) -> Tables:
    """Return the tables of a training split that is counted in folds, each with ``other`` added if given.

    ``began`` is the time of ``time.perf_counter()`` at which counting began.
    """
    whole = merged([*folds, *([other] if other is not None else [])])

    def without(fold: Counts) -> NgramTable:
        return build(whole.without(fold), min_count, min_gain=0)

    with ThreadPoolExecutor(min(torch.get_num_threads(), MAX_BUILDERS)) as pool:
        tables = list(pool.map(without, folds))
    return Tables(build(whole, min_count), tables, time.perf_counter() - began)


def count_tables(corpus: Corpus, vocab: Vocab, model: ModelConfig, training: TrainConfig) -> Tables:
    """Return the tables of ``corpus``'s training split for a model with a prior."""
    began = time.perf_counter()
    folds = count_folds(corpus, vocab, model.ngram_order, training.ngram_folds)
    return build_tables(folds, training.ngram_min_count, began)


def choose_tables(
    source: RunDir, corpus: Corpus, vocab: Vocab, model: ModelConfig, training: TrainConfig
) -> tuple[str, Tables, int]:
    """Return the name of the tables that predict a fine-tune's ``corpus`` best, the tables, and their minimum count.

    The candidates are "new", the tables of the new text, and a second one: "both", the tables of both texts, if the
    text of ``source`` can be counted again, else "old", the table of ``source``, unless ``training`` asks for a higher
    minimum count than that has. Either text may be private, so "both" has the higher minimum count of the two.

    Raises UserError if the vocabulary has more characters than a prior takes.
    """
    if len(vocab) > MAX_CHARACTERS:
        raise UserError(
            f"both texts together have {len(vocab):,} distinct characters, and an n-gram prior takes up to "
            f"{MAX_CHARACTERS:,}; pretrain with `ngram_order` 0"
        )
    began = time.perf_counter()
    folds = count_folds(corpus, vocab, model.ngram_order, training.ngram_folds)
    least, least_of_source = training.ngram_min_count, RunRecord.read(source).training.ngram_min_count
    choices = [("new", build_tables(folds, least, began), least)]
    other = _count_old(source.read_section("corpus"), vocab, model.ngram_order)
    if other is not None:
        higher = max(least, least_of_source)
        choices.append(("both", build_tables(folds, higher, began, other), higher))
    elif least <= least_of_source:
        choices.append(("old", _old_tables(source, vocab), least_of_source))

    def loss(choice: tuple[str, Tables, int]) -> float:
        return PriorRows(choice[1], corpus, vocab, model.ngram_order, torch.device("cpu"), keeps=False).loss()

    name, tables, count = min(choices, key=loss)
    return name, replace(tables, seconds=time.perf_counter() - began), count


def find_tables(record: RunRecord, run: RunDir, corpus: Corpus, vocab: Vocab) -> Tables:
    """Return the tables of the stopped fine-tune in ``run``, which were not counted on its own text alone.

    Raises UserError if the text of its source is needed and no longer available.
    """
    if record.counted == "old":
        return _old_tables(run, vocab)
    began = time.perf_counter()
    other = _count_old(record.counted_corpus, vocab, record.model.ngram_order)
    if other is None:
        raise UserError(
            f"the n-gram table of {run.path} has counted the text {record.counted_corpus.get('name')} too, which is no "
            "longer there; put it back, or start again with `overwrite`"
        )
    folds = count_folds(corpus, vocab, record.model.ngram_order, record.training.ngram_folds)
    return build_tables(folds, record.training.ngram_min_count, began, other)


def _count_old(summary: dict[str, Any], vocab: Vocab, order: int) -> Counts | None:
    """Return the counts of the text that config.json describes, or None if it cannot be used."""
    try:
        text = find_cached(summary)
    except UserError:
        return None
    return count_text(text, vocab, order) if text is not None and not vocab.unknown(text.alphabet) else None


def _old_tables(run: RunDir, vocab: Vocab) -> Tables:
    """Return the table of ``run``, widened to all of ``vocab``, as one that has not counted the new text."""
    old = run.read_ngram(run.read_shape()[0])
    assert old is not None, "a fine-tune has the prior that its source has"
    table = NgramTable(len(vocab), old.arrays)
    return Tables(table, [table], 0.0)


class PriorRows:
    """The prior's rows for windows of a corpus, as tensors.

    A GPU keeps the rows of all distinct contexts of the training split, if they fit, and a step takes the number of
    each position's row. Otherwise a step takes the rows themselves, which are looked up when it begins.

    Args:
        corpus: the corpus, whose training split was counted in as many folds as ``tables`` has.
        vocab: the model's vocabulary.
        order: the model's ``ngram_order``.
        device: the device of the rows.
        keeps: whether to keep rows on the device.
    """

    def __init__(
        self, tables: Tables, corpus: Corpus, vocab: Vocab, order: int, device: torch.device, keeps: bool
    ) -> None:
        self.tables = tables
        self._splits = {"train": corpus.train, "validation": corpus.validation}
        self.to_vocab = corpus.table(vocab)
        self._order = max(1, longest_context(order, len(vocab)))
        self._device = device
        self._fold_ends = np.array([end for _, end in fold_bounds(len(corpus.train), len(tables.folds))])
        self._kept: Tensor | None = None
        self._numbers = np.zeros(0, np.int32)
        if keeps:
            self.keep()

    def for_step(self, starts: Positions, length: int, out: Tensor | None = None) -> Tensor:
        """Return the prior's input to a step on training windows of ``length`` from ``starts``, (B,), on the device.

        A position's row depends on the text before its window too. The result is written to ``out`` if one is given.
        """
        places = starts[:, None] + np.arange(length)
        if self._kept is not None:
            found = torch.from_numpy(self._numbers[places])
        else:
            found = torch.from_numpy(self._looked_up("train", places, np.zeros_like(places)))
        return copy_to_device(found, self._device, out)

    def rows(self, step: Tensor) -> Tensor:
        """Return the rows, (B, T, V) float32, for a result of ``for_step``, without control flow on tensor values."""
        if self._kept is None:
            return step
        return self._kept[step].float().square()

    def within(self, split: str, starts: Positions, length: int) -> Tensor:
        """Return the rows of windows without the text before them, (B, length, V) float32, on the device.

        A model with a prior then sees no more of a text than one without. The rows of training windows come from their
        folds' tables.
        """
        places = starts[:, None] + np.arange(length)
        first = np.broadcast_to(starts[:, None], places.shape)
        return torch.from_numpy(self._looked_up(split, places, first)).to(self._device)

    def loss(self) -> float:
        """Return the mean loss of the tables alone on a sample of the training split, each part by its fold's table."""
        ids = self._splits["train"]
        length = min(64, len(ids) - 1)
        windows = min(SCORED // length, (len(ids) - 1) // length)
        starts = np.linspace(0, len(ids) - 1 - length, windows).astype(np.int64)
        places = starts[:, None] + np.arange(length)
        rows = self._looked_up("train", places, np.zeros_like(places))
        targets = self.to_vocab[ids[places + 1]][..., None]
        return -float(np.log(np.take_along_axis(rows, targets, axis=2), dtype=np.float64).mean())

    def bytes(self) -> int:
        """Return the bytes of the tables, the rows kept on the device, and their numbers."""
        tables = [self.tables.whole, *{id(table): table for table in self.tables.folds}.values()]
        kept = 0 if self._kept is None else self._kept.nbytes
        return sum(table.bytes() for table in tables) + kept + self._numbers.nbytes

    def _contexts(self, split: str, places: Positions, first: Positions) -> NDArray[np.int64]:
        """Return the K characters up to each of ``places``, (places.size, K), with -1 for those before ``first``."""
        ids = self._splits[split]
        wanted = places.reshape(-1, 1) + np.arange(1 - self._order, 1)
        characters = self.to_vocab[ids[np.maximum(wanted, 0)]]
        return np.where(wanted < first.reshape(-1, 1), -1, characters)

    def _looked_up(self, split: str, places: Positions, first: Positions) -> NDArray[np.float32]:
        """Return the rows after ``places``, (*places.shape, V), for contexts that reach back to ``first`` at most."""
        contexts = self._contexts(split, places, first)
        if split == "validation":
            return self.tables.whole.rows(contexts).reshape(*places.shape, -1)
        folds = np.searchsorted(self._fold_ends, places.reshape(-1) + 1, side="right")  # of the predicted characters
        rows = np.empty((places.size, self.tables.whole.vocab_size), np.float32)
        for fold in np.unique(folds):
            rows[folds == fold] = self.tables.folds[fold].rows(contexts[folds == fold])
        return rows.reshape(*places.shape, -1)

    def keep(self) -> None:
        """Keep the rows of the training split's distinct contexts on the device, unless they are too large."""
        vocab_size, characters = self.tables.whole.vocab_size, len(self._splits["train"])
        numbers, kept, count = np.zeros(characters, np.int32), [], 0
        starts = np.concatenate([[0], self._fold_ends[:-1]])
        for table, start, end in zip(self.tables.folds, starts, self._fold_ends, strict=True):
            places = np.arange(max(0, start - 1), end - 1)  # the places whose rows predict the fold's characters
            found = np.concatenate(
                [
                    table.contexts_of(self._contexts("train", part, np.zeros_like(part)))
                    for part in np.array_split(places, max(1, len(places) // ROWS_AT_ONCE))
                ]
            )
            distinct, first, inverse = np.unique(found, return_index=True, return_inverse=True)
            numbers[places] = count + inverse
            count += len(distinct)
            if 2 * count * vocab_size > MAX_ON_DEVICE:
                return
            for part in np.array_split(places[first], max(1, len(first) // ROWS_AT_ONCE)):
                rows = table.rows(self._contexts("train", part, np.zeros_like(part)))
                kept.append(torch.from_numpy(np.sqrt(rows).astype(np.float16)).to(self._device))
        self._kept, self._numbers = torch.cat(kept), numbers

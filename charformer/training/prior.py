"""An n-gram prior in a training: the tables that are counted for it, and their rows for windows of the text.

A window that is trained on must not see a table that has counted it: the network would trust the prior too much. The
training split is therefore cut into contiguous folds, and the rows of each come from a table of all others (stacked
generalisation, Wolpert 1992). Validation and sampling use the table of the whole split.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charformer.config import ModelConfig, TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.ngram import MAX_CHARACTERS, NgramTable
from charformer.data.ngram_counts import Counts, build, count, fold_bounds, leave_one_out, longest_context, merged
from charformer.data.recall import recall
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.runs.folder import RunDir

MAX_ON_DEVICE = 2 << 30  # bytes of rows that a GPU keeps
ROWS_AT_ONCE = 1 << 14
SCORED = 1 << 15  # characters by which tables of a fine-tune are compared

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """The tables of a training.

    Attributes:
        whole: of all text that may be counted, for validation and sampling.
        folds: for each fold of the training split, a table that has not counted it.
        seconds: that counting took.
    """

    whole: NgramTable
    folds: list[NgramTable]
    seconds: float


def count_text(corpus: Corpus, vocab: Vocab, order: int) -> Counts:
    """Count the training split of ``corpus`` as one piece."""
    return count(corpus.train, len(vocab), longest_context(order, len(vocab)), corpus.table(vocab))


def count_tables(
    corpus: Corpus, vocab: Vocab, model: ModelConfig, training: TrainConfig, other: Counts | None = None
) -> Tables:
    """Count the training split of ``corpus`` for a model with a prior; ``other`` counts join those of every fold."""
    began = time.perf_counter()
    order = longest_context(model.ngram_order, len(vocab))
    table = corpus.table(vocab)
    parts = [
        count(corpus.train[start:end], len(vocab), order, table)
        for start, end in fold_bounds(len(corpus.train), training.ngram_folds)
    ]
    others = [other] if other is not None else []
    least = training.ngram_min_count
    folds = [build(merged([left, *others]), least, min_gain=0) for left in leave_one_out(parts)]
    return Tables(build(merged([*parts, *others]), least), folds, time.perf_counter() - began)


def choose_tables(
    source: RunDir, corpus: Corpus, vocab: Vocab, model: ModelConfig, training: TrainConfig
) -> tuple[str, Tables]:
    """Return the tables of a fine-tune on ``corpus`` that predict it best, and which text they have counted.

    They are those of the new text, those of both texts where that of ``source`` is there to be counted again, and else
    the table that ``source`` has. Raises UserError for more characters than a prior takes.
    """
    if len(vocab) > MAX_CHARACTERS:
        raise UserError(
            f"both texts together have {len(vocab):,} distinct characters, and an n-gram prior takes up to "
            f"{MAX_CHARACTERS:,}; pretrain with --ngram-order 0"
        )
    began = time.perf_counter()
    choices = {"new": count_tables(corpus, vocab, model, training)}
    other = _count_old(source, vocab, model.ngram_order)
    if other is not None:
        choices["both"] = count_tables(corpus, vocab, model, training, other)
    else:
        choices["old"] = _old_tables(source, vocab)
    losses = {
        name: PriorRows(tables, corpus, vocab, model.ngram_order, torch.device("cpu"), keeps=False).loss()
        for name, tables in choices.items()
    }
    best = min(losses, key=lambda name: losses[name])
    return best, replace(choices[best], seconds=time.perf_counter() - began)


def recall_tables(
    counted: str,
    source: RunDir,
    run: RunDir,
    corpus: Corpus,
    vocab: Vocab,
    model: ModelConfig,
    training: TrainConfig,
) -> Tables:
    """Return the tables of a stopped fine-tune, in ``run``, that were not counted on its own text alone.

    Raises UserError where the text of ``source`` is needed and no longer there.
    """
    if counted == "old":
        return _old_tables(run, vocab)
    other = _count_old(source, vocab, model.ngram_order)
    if other is None:
        raise UserError(
            f"the n-gram table of {run.path} has counted the text of {source.path} too, which is no longer there; "
            "put it back, or start again with --overwrite"
        )
    return count_tables(corpus, vocab, model, training, other)


def _count_old(source: RunDir, vocab: Vocab, order: int) -> Counts | None:
    """Return the counts of the text that ``source`` was trained on, if it is there."""
    try:
        text = recall(source.read_section("corpus"))
    except UserError:
        return None
    return count_text(text, vocab, order) if text is not None and not vocab.unknown(text.alphabet) else None


def _old_tables(run: RunDir, vocab: Vocab) -> Tables:
    """Return the table of ``run`` as that of a text it has not counted, with rows for all of ``vocab``."""
    old = run.read_ngram(run.read_shape()[0])
    assert old is not None, "a fine-tune has the prior that its source has"
    table = NgramTable(len(vocab), old.arrays)
    return Tables(table, [table], 0.0)


class PriorRows:
    """Rows of the prior for windows of a corpus, as tensors.

    On a GPU the rows of all distinct contexts of the training split are kept there, where they fit, and a step takes
    the number of each position's row; elsewhere a step takes the rows themselves, looked up when it begins.

    Args:
        corpus: whose training split was counted in as many folds as ``tables`` has.
        vocab: the model's.
        order: the model's ``ngram_order``.
        device: where the rows are wanted.
        keeps: whether rows are kept on the device.
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
            self._keep()

    def for_step(self, starts: Positions, length: int, out: Tensor | None = None) -> Tensor:
        """Return what a step on training windows of ``length`` from ``starts``, (B,), takes, on the device.

        Each position's row sees the text before its window too. The result goes to ``out`` where one is given.
        """
        places = starts[:, None] + np.arange(length)
        if self._kept is not None:
            found = torch.from_numpy(self._numbers[places])
        else:
            found = torch.from_numpy(self._looked_up("train", places, np.zeros_like(places)))
        if self._device.type == "cuda":
            found = found.pin_memory()
        return found.to(self._device, non_blocking=True) if out is None else out.copy_(found, non_blocking=True)

    def rows(self, step: Tensor) -> Tensor:
        """Return the rows, (B, T, V) float32, of what ``for_step`` returned. Shapes alone decide what it does."""
        if self._kept is None:
            return step
        return self._kept[step].float().square()

    def within(self, split: str, starts: Positions, length: int) -> Tensor:
        """Return the rows of windows whose contexts begin with them, (B, length, V) float32, on the device.

        So a model with a prior is told no more of a window than one without. Training windows are predicted by their
        folds' tables.
        """
        places = starts[:, None] + np.arange(length)
        first = np.broadcast_to(starts[:, None], places.shape)
        return torch.from_numpy(self._looked_up(split, places, first)).to(self._device)

    def loss(self) -> float:
        """Return the mean loss of the tables alone on some of the training split, each part by its fold's table."""
        ids, length = self._splits["train"], 64
        starts = np.linspace(0, len(ids) - length - 1, min(SCORED // length, len(ids) // length)).astype(np.int64)
        places = starts[:, None] + np.arange(length)
        rows = self._looked_up("train", places, np.zeros_like(places))
        targets = self.to_vocab[ids[places + 1]][..., None]
        return -float(np.log(np.take_along_axis(rows, targets, axis=2), dtype=np.float64).mean())

    def bytes(self) -> int:
        """Return the memory of the tables and of what is kept on the device."""
        tables = [self.tables.whole, *{id(table): table for table in self.tables.folds}.values()]
        kept = 0 if self._kept is None else self._kept.nbytes
        return sum(table.bytes() for table in tables) + kept + self._numbers.nbytes

    def _contexts(self, split: str, places: Positions, first: Positions) -> NDArray[np.int64]:
        """Return the characters up to each of ``places`` and from ``first`` on, (places.size, K); -1 where none is."""
        ids = self._splits[split]
        wanted = places.reshape(-1, 1) + np.arange(1 - self._order, 1)
        characters = self.to_vocab[ids[np.maximum(wanted, 0)]]
        return np.where(wanted < first.reshape(-1, 1), -1, characters)

    def _looked_up(self, split: str, places: Positions, first: Positions) -> NDArray[np.float32]:
        """Return the rows behind ``places``, (*places.shape, V), of contexts that reach back to ``first`` at most."""
        contexts = self._contexts(split, places, first)
        if split == "validation":
            return self.tables.whole.rows(contexts).reshape(*places.shape, -1)
        folds = np.searchsorted(self._fold_ends, places.reshape(-1) + 1, side="right")  # of what is predicted
        rows = np.empty((places.size, self.tables.whole.vocab_size), np.float32)
        for fold in np.unique(folds):
            rows[folds == fold] = self.tables.folds[fold].rows(contexts[folds == fold])
        return rows.reshape(*places.shape, -1)

    def _keep(self) -> None:
        """Find the distinct contexts of the training split, unless their rows are too many to be kept."""
        vocab_size, characters = self.tables.whole.vocab_size, len(self._splits["train"])
        numbers, kept, count = np.zeros(characters, np.int32), [], 0
        starts = np.concatenate([[0], self._fold_ends[:-1]])
        for table, start, end in zip(self.tables.folds, starts, self._fold_ends, strict=True):
            places = np.arange(max(0, start - 1), end - 1)  # those that predict the fold's characters
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

"""How well a model predicts a text: mean losses over windows of its splits, in nats a character."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charformer.config import TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.windows import Windows
from charformer.device import autocast
from charformer.model.freeze import is_trunk_frozen
from charformer.model.gpt import GPT
from charformer.training.distributed import ONE_PROCESS, World
from charformer.training.prior import PriorRows
from kernels import ops

Split = Literal["train", "validation"]
Kept = dict[int, tuple[Tensor, Tensor | None]]
"""By the number of a batch's first window: what the trunk makes of the batch, and its rows of an n-gram prior."""

MAX_KEPT = 64 * 2**20  # bytes of a frozen trunk's results


def mean_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Of predicting each character of (B, T + 1) windows from those before it, by (B, T, V) logits."""
    return ops.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def subset_starts(characters: int, length: int, config: TrainConfig, number: int) -> NDArray[np.int64]:
    """Return where the windows of a split's fixed subset begin, (N,): one at a random place in each of N strata.

    Evenly spaced windows alias: where the records of a text are as long as the windows are apart, all of them start at
    the same place of a record. A split that the subset holds as a whole is cut into windows from its start.

    Args:
        characters: of the split, more than ``length``.
        length: of a window, to which belongs one more character, the last one's target.
        config: its ``eval_batches``, ``batch_size`` and ``seed``.
        number: the split's, so that each has places of its own.
    """
    most, count = config.eval_batches * config.batch_size, (characters - 1) // length
    if config.even_windows:
        return np.linspace(0, characters - length - 1, min(most, count)).astype(np.int64)
    if count <= most:
        return np.arange(count) * length
    places = np.arange(most) + np.random.default_rng((config.seed, number, most)).random(most)
    return (places * ((characters - length) / most)).astype(np.int64)


class Evaluator:
    """Losses of ``model`` on ``corpus``.

    While only the head trains, the blocks make the same of the same windows: what they make of the fixed subset is kept
    from the first evaluation on, unless it is too large.

    Args:
        model: with the weights that must not train marked so.
        windows: of the corpus, in the model's vocabulary and on its device.
        config: of the training, for its batches.
        dtype: of matrix products, but for the score of a whole split.
        world: the processes that share the work on the fixed subset.
        prior: the rows of a model with an n-gram prior.
    """

    def __init__(
        self,
        model: GPT,
        corpus: Corpus,
        windows: Windows,
        config: TrainConfig,
        dtype: torch.dtype,
        world: World,
        prior: PriorRows | None = None,
    ) -> None:
        self._model = model
        self._splits = {"train": corpus.train, "validation": corpus.validation}
        self._windows = windows
        self._config = config
        self._dtype = dtype
        self._world = world
        self._prior = prior
        length = model.config.block_size
        self._starts = {
            split: subset_starts(len(ids), length, config, number)
            for number, (split, ids) in enumerate(self._splits.items())
        }
        cells = model.config.n_embd + (model.config.vocab_size if prior else 0)
        streams = 4 * length * cells * sum(map(len, self._starts.values()))
        keeps = is_trunk_frozen(model) and streams <= MAX_KEPT
        self._kept: dict[str, Kept] | None = {split: {} for split in self._splits} if keeps else None

    def subset_loss(self, split: Split) -> float:
        """Over at most ``eval_batches`` batches of windows from all over the split, the same ones each time.

        Every process must call it. Raises ProcessLostError.
        """
        pieces = [(self._starts[split], self._model.config.block_size)]
        kept = self._kept[split] if self._kept is not None else None
        return self._mean(split, pieces, self._dtype, self._world, kept=kept)

    def first_loss(self) -> float:
        """Over the first window of the training split, by this process alone."""
        pieces = [(np.zeros(1, np.int64), self._model.config.block_size)]
        return self._mean("train", pieces, self._dtype, ONE_PROCESS)

    def score_pieces(self, most: int | None) -> list[tuple[NDArray[np.int64], int]]:
        """Return the windows that ``whole_loss`` takes: the starts of those of each length, and that length."""
        length, characters = self._model.config.block_size, len(self._splits["validation"])
        if most is not None and characters - 1 > most:
            count = max(1, most // length)
            places = np.arange(count) + np.random.default_rng(0).random(count)
            return [((places * ((characters - length) / count)).astype(np.int64), length)]
        rest = (characters - 1) % length
        tail = [(np.array([characters - 1 - rest]), rest)] if rest else []
        return [(np.arange(0, characters - length, length), length), *tail]

    def whole_loss(self, on_progress: Callable[[int, int], None], most: int | None = None) -> float:
        """Over all of the validation split, in windows of ``block_size``, by this process alone.

        In float32 whatever the run's dtype, so that it is the same on every machine, to rounding. Of a split of more
        than ``most`` characters a fixed subset of about as many is taken, one window at a random place of each stratum.
        """
        return self._mean("validation", self.score_pieces(most), torch.float32, ONE_PROCESS, on_progress)

    @torch.inference_mode()
    def _mean(
        self,
        split: Split,
        pieces: list[tuple[NDArray[np.int64], int]],
        dtype: torch.dtype,
        world: World,
        on_progress: Callable[[int, int], None] = lambda *_: None,
        kept: Kept | None = None,
    ) -> float:
        """Return the mean loss over windows, given by their starts and length; all processes share them."""
        ids, batch_size = self._splits[split], self._config.batch_size // world.size
        was_training = self._model.training
        self._model.eval()
        total, characters, wanted = 0.0, 0, sum(len(starts) * length for starts, length in pieces)
        for starts, length in pieces:
            for first in range(world.rank * batch_size, len(starts), world.size * batch_size):
                part = starts[first : first + batch_size]
                batch = self._windows(ids, part, length)
                with autocast(dtype, batch.device):
                    if kept is None:
                        logits = self._model(batch[:, :-1], None, self._rows(split, part, length))
                    else:
                        if first not in kept:
                            rows = self._rows(split, part, length)
                            kept[first] = self._model.trunk(batch[:, :-1], None, rows)[0], rows
                        logits = self._model.logits(*kept[first])
                total += float(mean_loss(logits, batch)) * len(part) * length
                characters += len(part) * length
                on_progress(characters, wanted)
        self._model.train(was_training)
        sums = world.all_reduce_sum(torch.tensor([total, float(characters)], dtype=torch.float64))
        return float(sums[0] / sums[1])

    def _rows(self, split: Split, starts: NDArray[np.int64], length: int) -> Tensor | None:
        return None if self._prior is None else self._prior.within(split, starts, length)

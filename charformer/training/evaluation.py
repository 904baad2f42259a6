"""The evaluation of a model in training: mean losses over windows of a text's splits, in nats per character."""

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

MAX_KEPT = 64 * 2**20  # bytes of a frozen trunk's outputs


def mean_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Return the mean loss of (B, T, V) logits that predict each next character of (B, T + 1) windows."""
    return ops.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def subset_starts(characters: int, length: int, config: TrainConfig, number: int) -> NDArray[np.int64]:
    """Return the starts of the windows of a split's fixed subset, (N,): one at a random place in each of N strata.

    Evenly spaced windows alias: if the records of a text are as long as the spacing, all windows start at the same
    place in a record. A split that fits in the subset as a whole is cut into windows from its start.

    Args:
        characters: the number of characters of the split, more than ``length``.
        length: the length of a window, without the character after it, which is the last target.
        config: the config whose ``eval_batches``, ``batch_size``, ``seed`` and ``even_windows`` are used.
        number: the number of the split, so that each split has its own places.
    """
    most, count = config.eval_batches * config.batch_size, (characters - 1) // length
    if config.even_windows:
        return np.linspace(0, characters - length - 1, min(most, count)).astype(np.int64)
    if count <= most:
        return np.arange(count) * length
    places = np.arange(most) + np.random.default_rng((config.seed, number, most)).random(most)
    return (places * ((characters - length) / most)).astype(np.int64)


class Evaluator:
    """Computes the losses of ``model`` on ``corpus``.

    While only the head trains, the blocks' outputs on the fixed subset do not change. The first evaluation keeps them
    for later ones, unless they are too large.

    Args:
        model: the model, with ``requires_grad`` off for the weights that must not train.
        windows: the windows of the corpus, in the model's vocabulary and on its device.
        config: the config of the training, for its batches.
        dtype: the dtype of matrix products, except in the score of a whole split, which is float32.
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
        """Return the mean loss over at most ``eval_batches`` batches of windows spread over the split, always the same.

        Every process must call this. Raises ProcessLostError.
        """
        pieces = [(self._starts[split], self._model.config.block_size)]
        kept = self._kept[split] if self._kept is not None else None
        return self._mean(split, pieces, self._dtype, self._world, kept=kept)

    def first_loss(self) -> float:
        """Return the loss on the first window of the training split, computed by this process alone."""
        pieces = [(np.zeros(1, np.int64), self._model.config.block_size)]
        return self._mean("train", pieces, self._dtype, ONE_PROCESS)

    def score_pieces(self, most: int | None) -> list[tuple[NDArray[np.int64], int]]:
        """Return the windows that ``whole_loss`` scores, as pairs of the starts and the length of equal windows."""
        length, characters = self._model.config.block_size, len(self._splits["validation"])
        if most is not None and characters - 1 > most:
            count = max(1, most // length)
            places = np.arange(count) + np.random.default_rng(0).random(count)
            return [((places * ((characters - length) / count)).astype(np.int64), length)]
        rest = (characters - 1) % length
        tail = [(np.array([characters - 1 - rest]), rest)] if rest else []
        return [(np.arange(0, characters - length, length), length), *tail]

    def whole_loss(self, on_progress: Callable[[int, int], None], most: int | None = None) -> float:
        """Return the mean loss over the whole validation split in windows of ``block_size``, by this process alone.

        It is computed in float32 whatever the run's dtype, so that it is the same on every machine up to rounding. If
        the split has more than ``most`` characters, a fixed subset of about ``most`` characters is scored instead, with
        one window at a random place in each stratum.
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
        """Return the mean loss over windows, given by starts and lengths; the processes of ``world`` share the work."""
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

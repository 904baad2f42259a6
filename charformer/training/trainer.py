"""The training loop: batches, steps, evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from charformer.config import TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab
from charformer.data.windows import WindowOrder, Windows
from charformer.device import products_in
from charformer.errors import UserError
from charformer.model.freeze import train_mode
from charformer.model.gpt import GPT
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Counters, Evaluation, Progress
from charformer.training.distributed import ALONE, Team, TeammateLostError
from charformer.training.evaluation import Evaluator, Split, mean_loss
from charformer.training.optimizer import build_optimizer, learning_rate


class _Clock:
    """Seconds of training since an evaluation, without the pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.go_on()

    @property
    def running(self) -> float:
        """Seconds since the last pause."""
        return time.perf_counter() - self._since

    def pause(self) -> float:
        """The seconds since the last pause, which are counted from now on."""
        seconds = self.running
        self.seconds += seconds
        return seconds

    def go_on(self) -> None:
        self._since = time.perf_counter()


class Trainer:
    """One stage of training, in a run's folder.

    Args:
        model: on ``device``, with the weights that must not train marked so.
        vocab: the model's; it holds every character of ``corpus``.
        dtype: of matrix products; weights and the optimizer's state stay float32.
        team: the processes that share this training, each with a Trainer; the leader's alone writes.
    """

    def __init__(
        self,
        model: GPT,
        vocab: Vocab,
        corpus: Corpus,
        config: TrainConfig,
        run: RunDir,
        device: torch.device,
        dtype: torch.dtype,
        team: Team = ALONE,
    ) -> None:
        self.model = model
        self.team = team
        self.corpus = corpus
        self.config = config
        self.run = run
        self.device = device
        self.dtype = dtype
        self.optimizer = build_optimizer(model, config, dtype)
        self.counters = Counters()
        self.history: list[dict[str, Any]] = []
        self._order = WindowOrder(len(corpus.train), model.config.block_size, config.seed)
        self._windows = Windows(corpus.table(vocab), device)
        self._evaluator = Evaluator(model, corpus, self._windows, config, dtype, team)
        self._replica: nn.Module = model

    def resume(self) -> None:
        """Continue from last.safetensors; metrics after it are dropped. Raises UserError where that is impossible."""
        self.counters = checkpoint.load_state(self.run, self.model, self.optimizer)
        self.history = [row for row in self.run.read_metrics() if row["step"] <= self.counters.step]
        if self.team.is_leader:
            self.run.write_metrics(self.history)

    def save(self) -> None:
        """Write everything that ``resume`` needs."""
        if self.team.is_leader:
            checkpoint.save_state(self.run, self.model, self.optimizer, self.counters)

    def steps(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Train until ``max_steps`` or until ``stopped()``; save at each evaluation, when due besides, and at the end.

        The first Progress is that of step 0, the evaluation before any training. All of a team must stop together.

        Raises UserError when a loss is no longer finite; what was saved last stays as it is. Raises TeammateLostError,
        on the CPU with all steps so far saved unless an evaluation was under way.
        """
        self._replica = self.team.shared(self.model)
        if self.counters.step == 0 and not self.history:
            first = self._evaluate(rate=0.0, speed=None)
            self.save()
            yield Progress(0, first.train_loss, 0.0, first)
        train_mode(self.model)
        loss = torch.zeros(())
        clock, steps_since = _Clock(), 0
        lost: TeammateLostError | None = None
        try:
            while self.counters.step < self.config.max_steps and not stopped():
                rate = learning_rate(self.counters.step, self.config)
                loss = self._step(rate)
                steps_since += 1
                self.counters.step += 1
                self.counters.characters += self.config.batch_size * self.model.config.block_size
                due = self.counters.step % self.config.eval_interval == 0
                if due or self.counters.step == self.config.max_steps:
                    self._pause(clock, loss)
                    characters = steps_since * self.config.batch_size * self.model.config.block_size
                    steps_since = 0  # a save behind an evaluation that is cut off would lack its line of metrics
                    evaluation = self._evaluate(rate, characters / clock.seconds)
                    self.save()
                    clock = _Clock()
                    yield Progress(self.counters.step, loss, rate, evaluation)
                    continue
                if self._is_save_due(clock):
                    self._pause(clock, loss)
                    self._save_between()
                    clock.go_on()
                yield Progress(self.counters.step, loss, rate, None)
        except TeammateLostError as error:
            lost = error
        finally:
            self._replica = self.model  # lets go of the team's connection, which must not outlive the team
        if steps_since and not (lost and self.device.type == "cuda"):  # whose queue waits for the lost one for ever
            self._pause(clock, loss)
            self._save_between()
        if lost:
            raise lost

    def _pause(self, clock: "_Clock", loss: torch.Tensor) -> None:
        """Count the time so far as training; what follows is not. Raises UserError for a loss that is not finite."""
        self._check_finite(float(loss), "the loss of a batch")  # on a GPU this also waits for the steps
        self.counters.train_seconds += clock.pause()

    def _save_between(self) -> None:
        """Save where no evaluation has looked at what the last step made of the weights.

        Raises UserError when they give no finite loss; what was saved before then stays.
        """
        self._check_finite(self._evaluator.first_loss(), "the loss")
        self.save()

    def _is_save_due(self, clock: "_Clock") -> bool:
        """Whether to save now, between two evaluations."""
        steps, minutes = self.config.save_interval, self.config.save_minutes
        return bool((steps and self.counters.step % steps == 0) or (minutes and clock.running >= 60 * minutes))

    def draw(self) -> torch.Tensor:
        """This process's training windows of the next step, (B, block_size + 1) int64, on the trainer's device."""
        batch_size = self.config.batch_size
        starts = self._order.starts(self.counters.step * batch_size, batch_size)[self.team.rank :: self.team.size]
        return self._windows(self.corpus.train, starts, self.model.config.block_size)

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """The mean loss of predicting each character of (B, T + 1) from those before it."""
        with products_in(self.dtype, self.device):
            logits = self._replica(windows[:, :-1])
        return mean_loss(logits, windows)

    def update(self, rate: float) -> None:
        """Let the optimizer take a step of size ``rate`` along the gradients, and clear them."""
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _step(self, rate: float) -> torch.Tensor:
        self._seed_dropout()
        try:
            with self.team.together():
                loss = self.loss(self.draw())
                loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            raise UserError(
                f"step {self.counters.step + 1}: {error} The lines above say where it was computed; "
                "try a lower --learning-rate or --grad-clip 1"
            ) from error
        mean = self.team.sum(loss.detach()) / self.team.size
        self.update(rate)
        return mean

    def _seed_dropout(self) -> None:
        """Let a step's dropout follow from its number, so that a resumed run draws the same, and from the process."""
        numbers = np.random.SeedSequence((self.config.seed, self.counters.step, self.team.rank))
        torch.manual_seed(int(numbers.generate_state(1, np.uint64)[0]))

    def _evaluate(self, rate: float, speed: float | None) -> Evaluation:
        """Evaluate, record it, and keep the weights if they are the best so far."""
        start = time.perf_counter()
        train_loss = self.subset_loss("train")
        val_loss = self.subset_loss("validation")
        self._check_finite(train_loss + val_loss, "the loss")
        counters = self.counters
        counters.eval_seconds += time.perf_counter() - start
        row = Evaluation(counters.step, counters.characters, counters.train_seconds, train_loss, val_loss, rate, speed)
        self.history.append(asdict(row))
        is_best = val_loss < counters.best_val_loss
        if is_best:  # first of all, so that whoever finds that a file cannot be written knows it
            counters.best_val_loss, counters.best_step = val_loss, counters.step
        if self.team.is_leader:
            self.run.write_metrics(self.history)
        if is_best and self.team.is_leader:
            checkpoint.save_weights(self.run, self.model, counters.step, val_loss)
        return row

    def subset_loss(self, split: Split) -> float:
        """The mean loss over at most ``eval_batches`` batches of evenly spaced windows, the same ones each time."""
        return self._evaluator.subset_loss(split)

    def whole_validation_loss(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> float:
        """The loss of the best weights over all of the validation split, in float32 whatever the run's dtype.

        ``on_progress`` is called with the characters so far and in all.
        """
        checkpoint.load_weights(self.run, self.model)
        return self._evaluator.whole_loss(on_progress)

    def _check_finite(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"{what} is {loss} at step {self.counters.step}; try a lower --learning-rate or --grad-clip 1. "
                f"What was saved last is still in {self.run.path}"
            )

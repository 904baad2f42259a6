"""The training loop: batches, steps, evaluations and saves."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from charformer.config import TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab
from charformer.data.windows import WindowOrder, Windows
from charformer.device import autocast, synchronize
from charformer.errors import UserError
from charformer.model.freeze import train_mode
from charformer.model.gpt import GPT
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Counters, Evaluation, Progress
from charformer.training.correction import fit_correction
from charformer.training.cuda_graph import EAGER_STEPS, CapturedStep, side_stream
from charformer.training.distributed import ONE_PROCESS, ProcessLostError, World
from charformer.training.dropout_seeds import drawn_at_once, seed_dropout
from charformer.training.evaluation import Evaluator, Split, mean_loss
from charformer.training.optimizer import Optimizer
from charformer.training.prior import PriorRows, Tables, count_tables
from charformer.training.saver import Saver
from charformer.training.schedule import last_step, learning_rate, run_out_of_patience
from charformer.training.stopwatch import Stopwatch

PhaseName = Literal["data", "forward", "backward", "optimizer", "evaluation", "save"]
Batch = tuple[Tensor, ...]
PhaseHook = Callable[[PhaseName], AbstractContextManager[object]]

log = logging.getLogger("charformer")


class Trainer:
    """Trains one stage in a run's folder.

    Args:
        model: the model, on ``device``, with ``requires_grad`` off for the weights that must not train.
        vocab: the model's vocabulary, with every character of ``corpus``.
        dtype: the dtype of matrix products; weights and the optimizer's state stay float32.
        world: the processes of this training, each with a Trainer; only the main one writes.
        tables: the tables of a model with an n-gram prior; with None they are counted from ``corpus``.

    Attributes:
        prior: the rows of a model with an n-gram prior.
        phase: a function that returns a context in which a phase of the work runs; a bench that times phases replaces
            it. A step that is captured in a CUDA graph has no phase but ``data``.
        unwritten_best: the best weights, until a file has them.
        compile_seconds: the duration of the first pass on a GPU, which compiles kernels and does not count as training.
    """

    phase: PhaseHook = staticmethod(lambda _: nullcontext())

    def __init__(
        self,
        model: GPT,
        vocab: Vocab,
        corpus: Corpus,
        config: TrainConfig,
        run: RunDir,
        device: torch.device,
        dtype: torch.dtype,
        world: World = ONE_PROCESS,
        tables: Tables | None = None,
    ) -> None:
        self.model = model
        self.world = world
        self.corpus = corpus
        self.config = config
        self.run = run
        self.device = device
        self.dtype = dtype
        self.optimizer = Optimizer(model, config, dtype)
        self.counters = Counters()
        self.history: list[dict[str, Any]] = []
        self.compile_seconds = 0.0
        self._order = WindowOrder(len(corpus.train), model.config.block_size, config.seed)
        self._windows = Windows(corpus.table(vocab), device)
        self.prior: PriorRows | None = None
        if model.config.ngram_order:
            tables = tables or count_tables(corpus, vocab, model.config, config)
            self.prior = PriorRows(tables, corpus, vocab, model.config.ngram_order, device, keeps=device.type == "cuda")
            self.counters.train_seconds = tables.seconds
        self._evaluator = Evaluator(model, corpus, self._windows, config, dtype, world, self.prior)
        self._trains = any(parameter.requires_grad for parameter in model.parameters())
        self._data_parallel: nn.Module = model
        self._stopwatch = Stopwatch()
        self._saved_at = time.monotonic()
        self._steps_since_evaluation = 0
        self._eager_steps = 0
        self._captures = device.type == "cuda" and world.size == 1
        self._captured: CapturedStep | None = None
        self._saver = Saver(in_background=device.type == "cuda")
        self.unwritten_best: dict[str, Tensor] | None = None

    @property
    def is_finished(self) -> bool:
        return self.counters.step >= self.last_step

    @property
    def last_step(self) -> int:
        """Return the step at which the training ends."""
        return last_step(self.config, self.counters) if self._trains else self.counters.step

    def fit_correction(self) -> None:
        """Scale what the model adds to its n-gram prior so that it fits the text; every process must call this."""
        began = time.perf_counter()
        fit_correction(self.model, partial(self._evaluator.subset_loss, "train"))
        self.counters.eval_seconds += time.perf_counter() - began

    def resume(self) -> None:
        """Continue from last.safetensors and drop later metrics. Raises UserError if that is impossible."""
        self.counters, optimizer_state = checkpoint.load_state(self.run, self.model)
        try:
            self.optimizer.load_state(optimizer_state)
        except ValueError as error:
            raise UserError(f"{self.run.state} cannot be resumed from: {error}") from error
        self.history = [row for row in self.run.read_metrics() if row["step"] <= self.counters.step]
        if self.world.is_main:
            self.run.write_metrics(self.history)

    def save(self) -> None:
        """Write everything that ``resume`` needs; on a GPU in the background, where ``join_saves`` waits for it."""
        self._saved_at = time.monotonic()
        if self.world.is_main:
            with self.phase("save"):
                run, counters = self.run, replace(self.counters)
                tensors = self._saver.copy(checkpoint.state_tensors(self.model, self.optimizer.state()))
                self._saver.submit(lambda: checkpoint.save_state(run, tensors.items(), counters))

    def join_saves(self) -> None:
        """Wait until everything is written. Raises WriteError if a write failed."""
        self._saver.join()

    def drop_saves(self) -> None:
        """Wait until every write has succeeded or failed."""
        self._saver.drop()

    def steps(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Train until the last step or until ``stopped()``, and yield the progress after each step.

        The trainer saves at each evaluation, at the save intervals of the config, and at the end. The first Progress
        is that of step 0, the evaluation before any training. All processes must stop together.

        Raises UserError when a loss is no longer finite; the last save then stays as it is. Raises ProcessLostError
        when another process ends; on the CPU all steps so far are then saved, unless an evaluation is due.
        """
        if self._trains:
            self._data_parallel = self.world.data_parallel(self.model)
        if self.counters.step == 0 and not self.history:
            first = self._evaluate(rate=0.0, speed=None)
            self.save()
            yield Progress(0, self.last_step, first.train_loss, 0.0, first)
        train_mode(self.model)
        self._compile()
        self._stopwatch.start()
        lost: ProcessLostError | None = None
        loss = torch.zeros(())
        try:
            while not self.is_finished and not stopped():
                self._saver.check()
                rate = learning_rate(self.config, self.counters)
                loss = self.train_step(rate)
                evaluation = self._evaluate_if_due(loss, rate)
                if evaluation is None:
                    self._save_if_due(loss)
                yield Progress(self.counters.step, self.last_step, loss, rate, evaluation)
        except ProcessLostError as error:
            lost = error
        finally:
            self._data_parallel = self.model  # the wrapper's connection must not outlive the other processes
        # A GPU's queue would wait forever for a lost process; a save would take an evaluation from the resumed run.
        if self._steps_since_evaluation and not (lost and (self.device.type == "cuda" or self._evaluation_is_due)):
            self._pause(loss)
            self._save_unevaluated()
        self.join_saves()
        if lost:
            raise lost

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context for a use of the model between two steps, whose time does not count as training."""
        synchronize(self.device)
        self.counters.train_seconds += self._stopwatch.stop()
        try:
            yield
        finally:
            train_mode(self.model)
            self._stopwatch.start()

    def train_step(self, rate: float) -> Tensor:
        """Take the next step and count it; return the mean loss of its batch, a scalar tensor on the device.

        Raises UserError if --detect-anomaly finds a nan gradient, and ProcessLostError if another process has ended.
        """
        self.optimizer.set_learning_rate(rate)
        seed_dropout(self.config.seed, self.counters.step, self.world.rank)
        loss = self._replay_step() if self._is_captured() else self._eager_step()
        self.counters.step += 1  # before the processes talk, because a lost one does not undo the update
        self.counters.characters += self.config.batch_size * self.model.config.block_size
        self._steps_since_evaluation += 1
        return self.world.all_reduce_sum(loss) / self.world.size

    def next_batch(self, out: Batch | None = None) -> Batch:
        """Return this process's share of the next step's batch, on the device, or write it to ``out`` and return that.

        The batch is windows, (B, block_size + 1) int64, and for a model with an n-gram prior also the tensor that
        ``PriorRows.for_step`` returns.
        """
        batch_size, length = self.config.batch_size, self.model.config.block_size
        starts = self._order.starts(self.counters.step * batch_size, batch_size)[self.world.rank :: self.world.size]
        with self.phase("data"):
            windows = self._windows(self.corpus.train, starts, length, out[0] if out else None)
            if self.prior is None:
                return (windows,)
            return windows, self.prior.for_step(starts, length, out[1] if out else None)

    def loss(self, windows: Tensor, prior: Tensor | None = None) -> Tensor:
        """Return the mean loss of predicting each character of (B, T + 1) windows from those before it and a prior."""
        rows = None if self.prior is None or prior is None else self.prior.rows(prior)
        with autocast(self.dtype, self.device), drawn_at_once(self.device, self.model.config.n_layer):
            logits = self._data_parallel(windows[:, :-1], None, rows)
        return mean_loss(logits, windows)

    def update(self) -> None:
        """Clip the gradients, take an optimizer step, and drop the gradients."""
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward_backward_update(self, *batch: Tensor) -> Tensor:
        """Run a step's forward pass, backward pass and update without a device sync; return the loss."""
        with self.phase("forward"):
            loss = self.loss(*batch)
        with self.phase("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with self.phase("optimizer"):
            self.update()
        return loss.detach()

    def _eager_step(self) -> Tensor:
        self._eager_steps += 1
        try:
            with self.world.communication(), side_stream() if self._captures else nullcontext():
                return self.forward_backward_update(*self.next_batch())
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            raise UserError(
                f"step {self.counters.step + 1}: {error} The lines above say where it was computed; "
                "try a lower `learning_rate` or `grad_clip` 1"
            ) from error

    def _is_captured(self) -> bool:
        """Return whether steps replay a CUDA graph, which is captured after the first ``EAGER_STEPS`` eager steps."""
        if self._captured is None and self._captures and self._eager_steps >= EAGER_STEPS:
            try:
                if torch.is_anomaly_enabled():
                    raise RuntimeError("the search for anomalies looks at every operation")
                self._captured = CapturedStep(self.forward_backward_update, self.next_batch())
            except RuntimeError as error:
                self._captures = False
                self.optimizer.zero_grad()
                log.warning("training without a CUDA graph, which takes longer: %s", str(error).partition("\n")[0])
        return self._captured is not None

    def _replay_step(self) -> Tensor:
        assert self._captured is not None
        self.next_batch(out=self._captured.inputs)
        return self._captured.replay()

    def _compile(self) -> None:
        """Compile a GPU's kernels before the clock starts, without changing any weight or optimizer state."""
        if self.device.type != "cuda" or self.is_finished:
            return
        began = time.perf_counter()
        seed_dropout(self.config.seed, self.counters.step, self.world.rank)
        with self.world.communication(), side_stream():
            self.loss(*self.next_batch()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()
        torch.cuda.synchronize()
        self.compile_seconds += time.perf_counter() - began

    def _pause(self, loss: Tensor) -> None:
        """Stop the stopwatch and count its time as training. Raise UserError if the loss is not finite."""
        self._check_finite(float(loss), "the loss of a batch")  # on a GPU this also waits for the steps
        self.counters.train_seconds += self._stopwatch.stop()

    def _evaluate_if_due(self, loss: Tensor, rate: float) -> Evaluation | None:
        """Evaluate and save if an evaluation is due; return the evaluation, or None if it is not due."""
        if not self._evaluation_is_due:
            return None
        self._pause(loss)
        characters = self._steps_since_evaluation * self.config.batch_size * self.model.config.block_size
        self._steps_since_evaluation = 0  # else a save after an interrupted evaluation would lack its metrics
        evaluation = self._evaluate(rate, characters / self._stopwatch.seconds)
        self.save()
        self._stopwatch = Stopwatch()
        self._stopwatch.start()
        return evaluation

    @property
    def _evaluation_is_due(self) -> bool:
        return self.counters.step % self.config.eval_interval == 0 or self.is_finished

    def _save_if_due(self, loss: Tensor) -> None:
        """Save between two evaluations if a save is due."""
        steps, minutes = self.config.save_interval, self.config.save_minutes
        is_late = minutes and time.monotonic() >= self._saved_at + 60 * minutes
        if is_late or (steps and self.counters.step % steps == 0):
            self._pause(loss)
            self._save_unevaluated()
            self._stopwatch.start()

    def _save_unevaluated(self) -> None:
        """Save weights that no evaluation has checked since the last step.

        Raises UserError if their loss on one window is not finite; the previous save then stays.
        """
        self._check_finite(self._evaluator.first_loss(), "the loss")
        self._saver.join()
        self.save()

    def _evaluate(self, rate: float, speed: float | None) -> Evaluation:
        """Evaluate, record the result, and keep the weights if they are the best so far."""
        start = time.perf_counter()
        with self.phase("evaluation"):
            train_loss = self.subset_loss("train")
            val_loss = self.subset_loss("validation")
        self._check_finite(train_loss + val_loss, "the loss")
        counters = self.counters
        counters.eval_seconds += time.perf_counter() - start
        row = Evaluation(counters.step, counters.characters, counters.train_seconds, train_loss, val_loss, rate, speed)
        self.history.append(asdict(row))
        is_best = val_loss < counters.best_val_loss
        if is_best:
            counters.best_val_loss, counters.best_step = val_loss, counters.step
        evaluations = [(int(past["step"]), float(past["val_loss"])) for past in self.history]
        if shortened := run_out_of_patience(self.config, counters, evaluations):
            log.info(shortened)
        if self.world.is_main:
            with self.phase("save"):
                self._write_evaluation(is_best)
        return row

    def _write_evaluation(self, is_best: bool) -> None:
        """Write the metrics so far, and the weights if they are the best, once earlier saves are done."""
        self._saver.join()
        run, history, step, val_loss = self.run, list(self.history), self.counters.step, self.counters.best_val_loss
        weights = self._saver.copy(self.model.state_dict().items()) if is_best else None
        self.unwritten_best = weights or self.unwritten_best

        def write() -> None:
            run.write_metrics(history)
            if weights is not None:
                checkpoint.save_weights(run, weights, step, val_loss)
                self.unwritten_best = None

        self._saver.submit(write)

    def subset_loss(self, split: Split) -> float:
        """Return the mean loss over at most ``eval_batches`` batches of windows, the same ones each time."""
        return self._evaluator.subset_loss(split)

    def whole_validation_loss(
        self, on_progress: Callable[[int, int], None] = lambda *_: None, most: int | None = None
    ) -> float:
        """Return the loss of the best weights over the whole validation split, in float32 whatever the run's dtype.

        A split of more than ``most`` characters is scored on a fixed subset. ``on_progress`` is called with the number
        of characters scored so far and the total.
        """
        checkpoint.load_weights(self.run, self.model)
        return self.score(on_progress, most)

    def score(self, on_progress: Callable[[int, int], None] = lambda *_: None, most: int | None = None) -> float:
        """Return ``whole_validation_loss`` of the weights as they are."""
        return self._evaluator.whole_loss(on_progress, most)

    def scored_characters(self, most: int | None) -> int:
        """Return the number of characters that ``whole_validation_loss`` averages over."""
        return sum(len(starts) * length for starts, length in self._evaluator.score_pieces(most))

    def _check_finite(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"{what} is {loss} at step {self.counters.step}; try a lower `learning_rate` or `grad_clip` 1. "
                f"What was saved last is still in {self.run.path}"
            )

"""The log of a training for TensorBoard: event files in the run's folder."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self

from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Evaluation, Progress
from charformer.runs.model_card import block

FLUSH_SECONDS = 10.0  # reading the losses of batches makes a GPU wait

log = logging.getLogger("charformer")


def require_tensorboard() -> None:
    """Raise UserError if the package that writes the events is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError("`log` tensorboard needs the package tensorboard: pip install tensorboard")


class TensorBoardLog:
    """A context manager that logs one training: losses in nats per character, learning rate, speed and samples.

    A file that cannot be written ends the log with a warning, and not the training.

    Args:
        first_step: the step at which this process begins. What an earlier one logged of later steps no longer counts.
    """

    def __init__(self, run: RunDir, first_step: int) -> None:
        self._run = run
        self._first_step = first_step
        self._batches: list[tuple[Progress, float]] = []
        self._flushed = 0.0
        self._writer: Any = None  # without types

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        with self._ends_at_an_error():
            purge_step = self._first_step + 1 if self._first_step else None
            self._writer = SummaryWriter(str(self._run.path), purge_step=purge_step)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with self._ends_at_an_error():
                self._write_batches()
                self._writer.close()

    def update(self, progress: Progress) -> None:
        """Log a step; write the steps so far if there was an evaluation, or if it is time to."""
        if self._writer is None:
            return
        if progress.step:
            self._batches.append((progress, time.time()))
        if progress.evaluation is None and time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        with self._ends_at_an_error():
            self._write_batches()
            if progress.evaluation is not None:
                self._write_evaluation(progress.evaluation)

    def add_sample(self, step: int, text: str) -> None:
        """Log what the model writes after ``step`` steps."""
        if self._writer is not None:
            with self._ends_at_an_error():
                self._writer.add_text("sample", block(text), step)

    def _write_batches(self) -> None:
        for progress, when in self._batches:
            self._writer.add_scalar("loss/batch", float(progress.loss), progress.step, when)
            self._writer.add_scalar("learning_rate", progress.learning_rate, progress.step, when)
        self._batches.clear()

    def _write_evaluation(self, row: Evaluation) -> None:
        values = {
            "loss/training, estimated": row.train_loss,
            "loss/validation, estimated": row.val_loss,
            "characters_per_second": row.chars_per_second,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    @contextmanager
    def _ends_at_an_error(self) -> Iterator[None]:
        """Return a context in which an error of the operating system ends the log."""
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning("TensorBoard's log in %s ends here: %s", self._run.path, error.strerror or error)

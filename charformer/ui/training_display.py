"""The display of a training at work: a live panel on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from charformer.runs.metrics import Progress
from charformer.ui.console import duration
from charformer.ui.loss_curve import Points, loss_curve

PANEL_WIDTH = 100
FIGURES_WIDTH = 44  # of the panel, including borders
CURVE_WIDTH = 26  # below which the curve goes under the figures
MAX_BATCHES = 400  # losses of batches that the curve keeps
PLAIN_SECONDS = 10.0
REFRESH_SECONDS = 0.5  # drawing takes time from training (docs/lab/cpu-speed.md)


class TrainingDisplay:
    """A context manager that shows the steps of one training.

    Args:
        first_step: the step at which this process begins.
        characters_per_step: batch_size x block_size.
        memory: returns the peak memory so far, in bytes, or None.
        history: (step, training loss, validation loss) of evaluations before ``first_step``.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        first_step: int,
        characters_per_step: int,
        memory: Callable[[], int | None],
        history: list[tuple[int, float, float]],
    ) -> None:
        self._console = console
        self._title = title
        self._characters_per_step = characters_per_step
        self._memory = memory
        self._evaluations = list(history)
        self._batches: Points = []
        self._step_rate = _StepRate(first_step)
        self._drawn = 0.0
        self._is_unicode = console.encoding.lower().startswith("utf")
        self._live = Live(console=console, auto_refresh=False) if console.is_interactive else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, step: Progress) -> None:
        """Record a step; redraw if it is time to."""
        self._step_rate.tick(step.step, counts=step.evaluation is None)
        if step.evaluation:
            row = step.evaluation
            self._evaluations.append((row.step, row.train_loss, row.val_loss))
        pause = REFRESH_SECONDS if self._live else PLAIN_SECONDS
        if not step.evaluation and time.monotonic() - self._drawn < pause:
            return
        self._drawn = time.monotonic()
        if self._live:
            self._live.update(self._panel(step), refresh=True)
        else:
            self._console.print(self._line(step))

    def show_sample(self, step: int, text: str) -> None:
        """Show, on one line, what the model writes after ``step`` steps."""
        mark = " ↵ " if self._is_unicode else " | "
        self._console.print(f"step {step:,} writes  {mark.join(filter(None, text.splitlines()))}")
        self._step_rate.pause()

    def _line(self, step: Progress) -> str:
        facts = [f"step {step.step:,}/{step.last_step:,}"]
        if step.evaluation:
            facts += [f"training {step.evaluation.train_loss:.4f}", f"validation {step.evaluation.val_loss:.4f}"]
        else:
            facts += [f"batch {float(step.loss):.4f}"]
        return " | ".join([*facts, *(f"{name} {value}" for name, value in self._figures(step))])

    def _figures(self, step: Progress) -> list[tuple[str, str]]:
        """Return what is known of the speed and the memory, by name."""
        rate, memory = self._step_rate.steps_per_second, self._memory()
        figures = [("learning rate", f"{step.learning_rate:.2e}")] if step.step else []
        if rate:
            figures.append(("chars/s", f"{rate * self._characters_per_step:,.0f}"))
            figures.append(("left", duration((step.last_step - step.step) / rate)))
        if memory:
            figures.append(("memory", f"{memory / 2**20:,.0f} MiB"))
        return figures

    def _panel(self, step: Progress) -> Panel:
        figures = Table.grid(padding=(0, 2))
        rows = [("step", f"{step.step:,} of {step.last_step:,}", "dim"), ("batch", _loss(float(step.loss)), "dim")]
        if self._evaluations:
            _, train_loss, val_loss = self._evaluations[-1]
            rows += [("training", _loss(train_loss), "cyan"), ("validation", _loss(val_loss), "yellow")]
        rows += [(name, value, "dim") for name, value in self._figures(step)]
        for name, value, style in rows:
            figures.add_row(Text(name, style), Text(value))
        self._keep_batch(step)
        width = min(self._console.width, PANEL_WIDTH)
        beside = width - FIGURES_WIDTH
        parts: list[Table | Text | ProgressBar] = [figures]
        if self._is_unicode:
            curve = loss_curve(self._series(), step.last_step, beside if beside >= CURVE_WIDTH else width - 4)
            if beside >= CURVE_WIDTH:
                body = Table.grid(padding=(0, 2))
                body.add_row(figures, curve)
                parts = [body]
            else:
                parts.append(curve)
        parts.append(ProgressBar(total=step.last_step, completed=step.step))
        return Panel(Group(*parts), title=Text(self._title), width=width)

    def _series(self) -> list[tuple[str, Points]]:
        """Return the lines of the curve, without the first steep fall, beside which all that follows would be flat."""
        trained = [row for row in self._evaluations if row[0]]
        first = trained[0][0] if len(trained) > 1 else 0
        return [
            ("bright_black", [point for point in self._batches if point[0] >= first]),
            ("cyan", [(step, loss) for step, loss, _ in trained]),
            ("yellow", [(step, loss) for step, _, loss in trained]),
        ]

    def _keep_batch(self, step: Progress) -> None:
        """Keep the mean of the batches' losses so far, of which recent ones count most, for the curve."""
        if not (step.step and math.isfinite(float(step.loss))) or (self._batches and step.step <= self._batches[-1][0]):
            return
        before = self._batches[-1][1] if self._batches else float(step.loss)
        self._batches.append((step.step, 0.8 * before + 0.2 * float(step.loss)))
        if len(self._batches) > MAX_BATCHES:
            self._batches = self._batches[::2]


def _loss(nats: float) -> str:
    """Return a loss in nats and in bits a character."""
    return f"{nats:.4f}  ({nats / math.log(2):.2f} bits)"


class _StepRate:
    """An average of the steps per second over about the last twenty, without the first step, which warms up."""

    def __init__(self, step: int) -> None:
        self._first = step + 1
        self._step = step
        self._time: float | None = None
        self._mean: float | None = None

    def tick(self, step: int, counts: bool) -> None:
        """Record that a step is done; ``counts`` is False for a step that an evaluation has delayed."""
        now = time.monotonic()
        if self._time is not None and step > self._first and (counts or self._mean is None):
            seconds = (now - self._time) / (step - self._step)
            mean = self._mean if self._mean is not None else seconds
            self._mean = mean + 0.05 * (seconds - mean)
        self._time, self._step = now, step

    def pause(self) -> None:
        """Leave out the time since the last tick."""
        self._time = time.monotonic()

    @property
    def steps_per_second(self) -> float:
        return 1 / self._mean if self._mean else 0.0

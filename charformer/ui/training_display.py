"""The display of a training at work: a live panel on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from charformer.runs.metrics import Progress
from charformer.ui.console import duration

PANEL_WIDTH = 100
FIGURES_WIDTH = 46  # of the panel, including borders and the curve's labels
CURVE_HEIGHT = 8
PLAIN_SECONDS = 10.0
REFRESH_SECONDS = 0.5  # drawing takes time from training (docs/lab/cpu-speed.md)


class TrainingDisplay:
    """A context manager that shows the steps of one training.

    Args:
        first_step, max_steps: the steps at which this process begins and ends.
        characters_per_step: batch_size x block_size.
        memory: returns the peak memory so far, in bytes, or None.
        history: (step, training loss, validation loss) of evaluations before ``first_step``.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        first_step: int,
        max_steps: int,
        characters_per_step: int,
        memory: Callable[[], int | None],
        history: list[tuple[int, float, float]],
    ) -> None:
        self._console = console
        self._title = title
        self._max_steps = max_steps
        self._characters_per_step = characters_per_step
        self._memory = memory
        self._evaluations = list(history)
        self._clock = _Clock(first_step)
        self._drawn = 0.0
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
        self._clock.tick(step.step, counts=step.evaluation is None)
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

    def _line(self, step: Progress) -> str:
        facts = [f"step {step.step:,}/{self._max_steps:,}"]
        if step.evaluation:
            facts += [f"train loss {step.evaluation.train_loss:.4f}", f"val loss {step.evaluation.val_loss:.4f}"]
        else:
            facts += [f"batch loss {float(step.loss):.4f}"]
        return " | ".join([*facts, *(f"{name} {value}" for name, value in self._figures(step))])

    def _figures(self, step: Progress) -> list[tuple[str, str]]:
        rate = self._clock.steps_per_second
        memory = self._memory()
        return [
            ("learning rate", f"{step.learning_rate:.2e}"),
            ("chars/s", f"{rate * self._characters_per_step:,.0f}"),
            ("left", duration((self._max_steps - step.step) / rate) if rate else "?"),
            ("memory", f"{memory / 2**20:,.0f} MiB" if memory else "?"),
        ]

    def _panel(self, step: Progress) -> Panel:
        figures = Table.grid(padding=(0, 2))
        rows = [
            ("step", f"{step.step:,} of {self._max_steps:,}", "dim"),
            ("batch loss", f"{float(step.loss):.4f}", "dim"),
        ]
        if self._evaluations:
            _, train_loss, val_loss = self._evaluations[-1]
            rows += [("train loss", f"{train_loss:.4f}", "cyan"), ("val loss", f"{val_loss:.4f}", "yellow")]
        rows += [(name, value, "dim") for name, value in self._figures(step)]
        for name, value, style in rows:
            figures.add_row(Text(name, style), Text(value))
        body = Table.grid(padding=(0, 3))
        room = min(self._console.width, PANEL_WIDTH) - FIGURES_WIDTH
        if room >= 20 and self._console.encoding.lower().startswith("utf"):
            body.add_row(figures, loss_curve(self._evaluations, self._max_steps, room))
        else:
            body.add_row(figures)
        bar = ProgressBar(total=self._max_steps, completed=step.step)
        return Panel(Group(body, bar), title=Text(self._title), width=min(self._console.width, PANEL_WIDTH))


class _Clock:
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

    @property
    def steps_per_second(self) -> float:
        return 1 / self._mean if self._mean else 0.0


def loss_curve(evaluations: list[tuple[int, float, float]], max_steps: int, width: int) -> Text:
    """Draw both losses by step in ``width`` cells of braille dots: cyan for training, yellow for validation."""
    text = Text()
    if len(evaluations) < 2:
        return text
    losses = [loss for row in evaluations for loss in row[1:]]
    low, high = min(losses), max(losses)
    dots_x, dots_y = 2 * width - 1, 4 * CURVE_HEIGHT - 1
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for series, color in ((1, "cyan"), (2, "yellow")):
        for before, after in pairwise(evaluations):
            left, right = (round(dots_x * row[0] / max_steps) for row in (before, after))
            for x in range(left, right + 1):
                share = (x - left) / (right - left) if right > left else 0.0
                loss = before[series] + share * (after[series] - before[series])
                y = round(dots_y * (high - loss) / (high - low)) if high > low else 0
                bits, _ = cells.get((y // 4, x // 2), (0, color))
                cells[y // 4, x // 2] = (bits | _BRAILLE[x % 2][y % 4], color)
    for row in range(CURVE_HEIGHT):
        label = {0: f"{high:.2f}", CURVE_HEIGHT - 1: f"{low:.2f}"}.get(row, "")
        text.append(f"{label:>5} ", style="dim")
        for column in range(width):
            bits, color = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + bits) if bits else " ", style=color)
        text.append("\n")
    return text


# The bit of each dot of a braille cell, by column and row (Unicode 1.1, U+2800 block).
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))

import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
from rich.console import Console

from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, printable, progress_bar
from charformer.ui.plots import plot_losses
from charformer.ui.training_display import TrainingDisplay, loss_curve


@dataclass(frozen=True)
class Losses:
    step: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True)
class Step:
    step: int
    loss: float
    learning_rate: float
    evaluation: Losses | None


def show(console: Console, steps: list[Step]) -> str:
    history = [(0, 4.0, 4.1)]
    with TrainingDisplay(console, "a [bold]title[/x]", 0, 100, 64, lambda: 3 * 2**20, history) as display:
        for step in steps:
            display.update(step)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


STEPS = [
    Step(1, 3.9, 1e-3, None),
    Step(2, 3.8, 1e-3, None),
    Step(3, 3.7, 1e-3, Losses(3, 3.5, 3.6)),
    Step(100, 1.0, 1e-4, Losses(100, 1.1, 1.2)),
]


def test_lines_where_nobody_watches() -> None:
    lines = show(PlainConsole(file=io.StringIO(), width=60), STEPS).splitlines()
    assert len(lines) == 3  # the first step and both evaluations
    assert "step 3/100 | train loss 3.5000 | val loss 3.6000 | learning rate 1.00e-03" in lines[1]
    assert "memory 3 MiB" in lines[2]
    assert not any("\x1b" in line for line in lines)


def test_speed_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("charformer.ui.training_display.time", SimpleNamespace(monotonic=lambda: now))
    console = PlainConsole(file=io.StringIO(), width=200)
    with TrainingDisplay(console, "title", 0, 100, 64, lambda: None, []) as display:
        for step in range(61):
            now += 30 if step in (1, 40) else 0.5  # the first step warms up; step 40 is held up by an evaluation
            display.update(Step(step, 2.0, 1e-3, Losses(step, 2.0, 2.0) if step in (0, 40, 60) else None))
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().splitlines()[-1]
    assert "step 60/100" in last
    assert "| chars/s 128 | left 0:20 | memory ?" in last


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_panel_on_a_terminal(width: int) -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=width, _environ={})
    shown = show(console, STEPS)
    assert "a [bold]title[/x]"[: width - 10] in shown
    assert "1.2000" in shown
    assert "100 of 100" in shown


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_colours_in_a_pipe_bring_no_panel(name: str) -> None:
    console = PlainConsole(file=io.StringIO(), _environ={name: "1"}, width=100)
    shown = show(console, STEPS)
    assert shown.count("\n") == 3
    assert not any(mark in shown for mark in ("\x1b[?25l", "╭", "\x1b[1A"))


def test_the_curve_falls_from_the_left_top_to_the_right_bottom() -> None:
    rows = loss_curve([(0, 4.0, 4.0), (50, 2.0, 2.5), (100, 1.0, 1.5)], 100, 30).plain.splitlines()
    assert rows[0].startswith(" 4.00 ")
    assert rows[-1].startswith(" 1.00 ")
    assert rows[0][6] != " "
    assert rows[0][-1] == " "
    assert rows[-1][-1] != " "
    assert rows[-1][6] == " "
    assert loss_curve([(0, 4.0, 4.0)], 100, 30).plain == ""
    assert loss_curve([(0, 4.0, 4.0), (100, 4.0, 4.0)], 100, 30).plain  # a flat curve divides by nothing


def test_no_text_steers_the_terminal() -> None:
    assert printable("a\x1b]0;x\x07\r\x9b1m\x7fé😀\n\t") == r"a\x1b]0;x\x07\x0d\x9b1m\x7fé😀" + "\n\t"


def test_a_bar_shows_nothing_where_nobody_watches() -> None:
    console = PlainConsole(file=io.StringIO())
    with progress_bar(console) as on_progress:
        on_progress("encoding", 1, 2)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().strip() == ""


def test_the_plot_is_a_picture_of_every_stage(tmp_path: Path) -> None:
    rows = [
        {"characters": 1000 * step, "step": step, "train_loss": 3 / step, "val_loss": 4 / step} for step in (1, 2, 3)
    ]
    widths = []
    for stages in ([("pretrain", rows)], [("pretrain", rows), ("finetune", rows[:1])]):
        run = RunDir(tmp_path)
        plot_losses(run, stages)
        pixels = matplotlib.image.imread(run.plot)
        assert pixels.std() > 0.01
        widths.append(pixels.shape[1])
    assert widths[1] == 2 * widths[0]


def test_a_stranger_s_text_does_not_steer_the_terminal() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, _environ={})
    console.print("a\x1b]0;title\x07b")
    assert console.file.getvalue() == "a\\x1b]0;title\\x07b\n"  # type: ignore[attr-defined]

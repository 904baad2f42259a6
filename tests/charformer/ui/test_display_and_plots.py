import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
from rich.console import Console

from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, printable, progress_bar
from charformer.ui.loss_curve import loss_curve
from charformer.ui.plots import plot_losses
from charformer.ui.training_display import TrainingDisplay


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
    last_step: int = 100


def show(console: Console, steps: list[Step]) -> str:
    history = [(0, 4.0, 4.1)]
    with TrainingDisplay(console, "a [bold]title[/x]", 0, 64, lambda: 3 * 2**20, history) as display:
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
    assert not any("?" in line or "chars/s 0" in line for line in lines)
    assert "step 3/100 | training 3.5000 | validation 3.6000 | learning rate 1.00e-03" in lines[1]
    assert "memory 3 MiB" in lines[2]
    assert not any("\x1b" in line for line in lines)


def test_speed_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("charformer.ui.training_display.time", SimpleNamespace(monotonic=lambda: now))
    console = PlainConsole(file=io.StringIO(), width=200)
    with TrainingDisplay(console, "title", 0, 64, lambda: None, []) as display:
        for step in range(61):
            now += 30 if step in (1, 40) else 0.5  # the first step warms up, and an evaluation delays step 40
            display.update(Step(step, 2.0, 1e-3, Losses(step, 2.0, 2.0) if step in (0, 40, 60) else None))
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().splitlines()[-1]
    assert "step 60/100" in last
    assert last.endswith("| chars/s 128 | left 0:20")


def test_what_the_model_writes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: now.seconds, seconds=0.0)
    monkeypatch.setattr("charformer.ui.training_display.time", now)
    console = PlainConsole(file=io.StringIO(), width=60)
    with TrainingDisplay(console, "", 0, 64, lambda: None, []) as display:
        for number in range(61):
            display.update(Step(number, 1.0, 1e-3, Losses(number, 1.0, 1.0) if number == 60 else None))
            if number % 10 == 5:
                now.seconds += 50  # the time of sampling does not count
                display.show_sample(number, "\nKING:\n\nO [b]my\x1b[31m lord")
            now.seconds += 0.5
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "step 5 writes  KING: ↵ O [b]my\\x1b[31m lord" in lines
    assert "| chars/s 128 |" in lines[-1]


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
    training, validation = [(0, 4.0), (50, 2.0), (100, 1.0)], [(0, 4.0), (50, 2.5), (100, 1.5)]
    drawn = loss_curve([("cyan", training), ("yellow", validation)], 100, 36)
    rows = drawn.plain.splitlines()
    assert len(rows) == 9
    assert max(map(len, rows)) == 36
    assert (rows[0][:6], rows[4][:6], rows[7][:6]) == (" 4.00 ", " 2.29 ", " 1.00 ")
    assert rows[0][6] != " "
    assert rows[0][-1] == " "
    assert rows[7][-1] != " "
    assert rows[7][6] == " "
    assert rows[8].split() == ["0", "100"]
    assert {str(span.style) for span in drawn.spans} >= {"cyan", "yellow"}
    assert loss_curve([("cyan", [(0, 4.0)])], 100, 36).plain == ""
    assert loss_curve([("cyan", [(0, 4.0), (100, 4.0)])], 100, 36).plain  # a flat curve must not divide by zero


def test_a_steep_line_hangs_together() -> None:
    rows = loss_curve([("cyan", [(50, 4.0), (51, 1.0)])], 100, 36).plain.splitlines()
    assert all(row[6:].strip() for row in rows[:8])


def test_the_curve_leaves_out_the_untrained_model_and_survives_fifty_columns() -> None:
    steps = [Step(0, 4.2, 0.0, Losses(0, 4.2, 4.2))]
    steps += [Step(step, 2.0, 1e-3, Losses(step, 2.0 - step / 100, 2.1 - step / 100)) for step in (20, 40, 60)]
    for width in (50, 100):
        console = PlainConsole(file=io.StringIO(), force_terminal=True, width=width, _environ={})
        last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", show(console, steps)).rpartition("╭")[2]
        assert "2.00 " in last, "the highest loss of a trained model, a batch of its own, labels the axis"
        assert "4.20" not in last
        assert "1.5000  (2.16 bits)" in last
        assert max(map(len, last.splitlines())) <= width


def test_a_batch_whose_loss_is_no_number_is_left_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr("charformer.ui.training_display.time", SimpleNamespace(monotonic=lambda: next(now)))
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=100, _environ={})
    losses = (3.0, 2.5, float("nan"), 2.0, float("inf"), 1.5)
    assert "1.5000  (2.16 bits)" in show(console, [Step(step, loss, 1e-3, None) for step, loss in enumerate(losses, 1)])


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

"""charformer-train --log tensorboard, read back by TensorBoard's own reader."""

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import charformer
from charformer.commands import train
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Progress
from charformer.ui import tensorboard
from tests.conftest import TINY

FLAGS = [*TINY, "--eval-interval", "4", "--log", "tensorboard"]


def events(run: Path) -> Any:
    found = EventAccumulator(str(run))
    found.Reload()
    return found


def steps(found: Any, tag: str) -> list[int]:
    return [event.step for event in found.Scalars(tag)]


def test_the_events_are_the_metrics(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["--data", str(text_file), "--out", str(run), *FLAGS]
    assert train.main([*command, "--steps", "8"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = events(run)
    for name, key in (("training", "train_loss"), ("validation", "val_loss")):
        logged = {event.step: event.value for event in found.Scalars(f"loss/{name}, estimated")}
        assert logged == {row["step"]: pytest.approx(row[key], rel=1e-6) for row in rows}
    assert steps(found, "loss/batch") == steps(found, "learning_rate") == list(range(1, 9))
    assert steps(found, "characters_per_second") == [4, 8]
    assert [event.step for event in found.Tensors("sample/text_summary")] == [0, 4]  # the last is in sample.txt

    assert train.main(["--resume", "--out", str(run), "--log", "tensorboard", "--steps", "12"]) == 0
    assert steps(events(run), "loss/batch") == list(range(1, 13))
    assert len(list(run.glob("events.*"))) == 2

    assert train.main([*command[:-2], "--steps", "4", "--overwrite"]) == 0
    assert list(run.glob("events.*")) == []


def test_steps_that_a_kill_has_undone_are_not_shown_twice(text_file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for first, last in ((0, 9), (4, 6)):
        with tensorboard.TensorBoardLog(run, first) as log:
            for step in range(first + 1, last + 1):
                log.update(Progress(step, 9, float(last), 0.1, None))
    found = events(tmp_path).Scalars("loss/batch")
    assert [(event.step, event.value) for event in found] == [*((n, 9.0) for n in range(1, 5)), (5, 6.0), (6, 6.0)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")  # noqa: PTH110
def test_a_full_disk_ends_the_log_and_not_the_training(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer import event_file_writer

    run = tmp_path / "run"
    make = event_file_writer.EventFileWriter.__init__

    def full(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        (path,) = run.glob("events.*")
        path.unlink()
        path.symlink_to("/dev/full")

    monkeypatch.setattr(event_file_writer.EventFileWriter, "__init__", full)
    command = ["--data", str(text_file), "--out", str(run), *FLAGS, "--steps", "8"]
    assert train.main(command) == 0
    assert "TensorBoard's log in" in capsys.readouterr().err
    assert (run / "sample.txt").is_file()


def test_without_the_package_it_is_one_line_before_anything_starts(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    assert train.main(["--data", str(text_file), "--out", str(tmp_path / "run"), *FLAGS]) == 2
    shown = capsys.readouterr().err
    assert shown == "charformer-train: --log tensorboard needs the package tensorboard: pip install tensorboard\n"
    with pytest.raises(charformer.UserError, match="`log` tensorboard needs the package tensorboard: pip install"):
        charformer.train(text_file, out=tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()


def test_the_library_logs_what_the_command_logs(text_file: Path, tmp_path: Path) -> None:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "batch_size": 8, "ngram_order": 0}
    seen: list[int] = []
    charformer.train(
        text_file,
        out=tmp_path / "run",
        steps=4,
        eval_interval=4,
        log="tensorboard",
        on_step=lambda progress: seen.append(progress.step),
        **shape,
    )
    assert seen == [0, *steps(events(tmp_path / "run"), "loss/batch")] == [0, 1, 2, 3, 4]
    with pytest.raises(charformer.UserError, match="`log` is 'wandb'; it must be 'tensorboard' or None"):
        charformer.train(text_file, out=tmp_path / "other", log="wandb")  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_the_library_logs_the_steps_that_an_interrupt_has_saved(text_file: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            time.sleep(0.5)  # meanwhile the training takes more steps
            raise KeyboardInterrupt

    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 24, "batch_size": 2, "ngram_order": 0}
    with pytest.raises(KeyboardInterrupt):
        charformer.train(
            text_file, out=tmp_path / "run", steps=4000, log="tensorboard", on_step=interrupt, dtype="float32", **shape
        )
    logged = steps(events(tmp_path / "run"), "loss/batch")
    assert logged == list(range(1, len(logged) + 1))
    assert len(logged) > 2
    further: list[Progress] = []
    charformer.train(text_file, out=tmp_path / "run", steps=len(logged), resume=True, on_step=further.append)
    assert further == [], "the last step that was saved was logged too"

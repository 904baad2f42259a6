"""Trainings by two processes, through torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from charformer.rundir import RunDir
from tests.conftest import TINY
from tests.reliability.test_disk import content

COURSE = [*TINY, "--preset", "fast", "--dtype", "float32", "--eval-interval", "20"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


def torchrun(*flags: str) -> list[str]:
    """The command that trains with two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    return [*launch, "-m", "charformer.commands.train", *flags]


@contextmanager
def started(*flags: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A training by two processes that has evaluated three times."""
    metrics = cwd / flags[flags.index("--out") + 1] / "metrics.jsonl"
    with subprocess.Popen(
        torchrun(*flags), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as process:
        until = time.monotonic() + 60
        while not (metrics.is_file() and metrics.read_text("utf-8").count("\n") > 2):
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                pytest.fail(process.communicate()[0])
            time.sleep(0.005)
        yield process


@pytest.fixture(scope="module")
def whole(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run by two processes, with dropout, that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(torchrun(*long_course(text_file)), cwd=folder, check=True, capture_output=True)
    return folder / "run"


def long_course(text_file: Path) -> list[str]:
    return [*COURSE, "--data", str(text_file), "--steps", "400", "--attention-dropout", "0.1", "--out", "run"]


def test_two_processes_learn_what_one_does(text_file: Path, tmp_path: Path) -> None:
    first = [*COURSE, "--data", str(text_file), "--steps", "40"]
    second = ["--stage", "finetune", "--freeze", "--init-from", "first", "--data", str(text_file), "--steps", "20"]
    second += ["--eval-interval", "10", "--dtype", "float32"]
    curves = {}
    for name, command in (("one", [sys.executable, "-m", "charformer.commands.train"]), ("two", torchrun())):
        (tmp_path / name).mkdir()
        for out, flags in (("first", first), ("second", second)):
            done = subprocess.run(
                [*command, *flags, "--out", out],
                cwd=tmp_path / name,
                capture_output=True,
                encoding="utf-8",
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("validation loss") == 1, "one process speaks"
            rows = RunDir(tmp_path / name / out).read_metrics()
            curves[name, out] = [loss for row in rows for loss in (row["train_loss"], row["val_loss"])]
    for out in ("first", "second"):
        assert curves["two", out] == pytest.approx(curves["one", out], abs=1e-4)
        assert curves["one", out][-1] < curves["one", out][1]


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_killed_process_is_started_again_and_costs_nothing(
    victim: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    with started(*long_course(text_file), cwd=tmp_path) as process:
        leader = int((tmp_path / "run" / ".lock").read_text("utf-8"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            process.kill()
            pytest.skip("this system does not tell the children of a process")
        (follower,) = {int(pid) for pid in children.read_text("utf-8").split()} - {leader}
        os.kill({"leader": leader, "follower": follower}[victim], signal.SIGKILL)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert content(tmp_path / "run") == content(whole)


def test_a_signal_stops_and_saves_and_resume_goes_on(whole: Path, text_file: Path, tmp_path: Path) -> None:
    with started(*long_course(text_file), cwd=tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "saved after step" in output, output
    assert not (tmp_path / "run" / ".lock").exists()
    done = subprocess.run(
        torchrun("--resume", "--out", "run"), cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == content(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "7"], "2 processes cannot share a batch of 7"),
        (["--data", "no such file"], "no such file"),
    ],
)
def test_a_mistake_is_told_once(flags: list[str], message: str, text_file: Path, tmp_path: Path) -> None:
    course = [*COURSE, "--data", str(text_file), *flags]
    done = subprocess.run(torchrun(*course), cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("charformer-train:")]
    assert len({*told}) == 1, done.stderr
    assert message in told[0]

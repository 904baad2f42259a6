"""Train with two processes through torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from charformer.runs.folder import RunDir
from tests.conftest import TINY
from tests.reliability.test_disk import content

FLAGS = [*TINY, "--preset", "fast", "--dtype", "float32", "--eval-interval", "20"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


def torchrun(*flags: str) -> list[str]:
    """Return the command that trains with two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    return [*launch, "-m", "charformer.commands.train", *flags]


@contextmanager
def started(*flags: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a training by two processes, and yield it after three evaluations."""
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
    """Return a folder with an undisturbed run by two processes, with dropout."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(torchrun(*long_flags(text_file)), cwd=folder, check=True, capture_output=True)
    return folder / "run"


def long_flags(text_file: Path) -> list[str]:
    return [*FLAGS, "--data", str(text_file), "--steps", "400", "--attention-dropout", "0.1", "--out", "run"]


def test_two_processes_learn_what_one_does(text_file: Path, tmp_path: Path) -> None:
    first = [*FLAGS, "--data", str(text_file), "--steps", "40"]
    more = ["--stage", "finetune", "--init-from", "first", "--data", str(text_file), "--steps", "20"]
    more += ["--eval-interval", "10", "--dtype", "float32"]
    runs = {"first": first, "attention": [*more, "--freeze"], "trunk": [*more, "--freeze", "trunk"]}
    curves = {}
    for name, command in (("one", [sys.executable, "-m", "charformer.commands.train"]), ("two", torchrun())):
        (tmp_path / name).mkdir()
        for out, flags in runs.items():
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
    for out in runs:
        assert curves["two", out] == pytest.approx(curves["one", out], abs=1e-4)
        assert curves["one", out][-1] < curves["one", out][1]


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_killed_process_is_started_again_and_costs_nothing(
    victim: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    with started(*long_flags(text_file), cwd=tmp_path) as process:
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


def test_a_signal_stops_and_saves_and_resume_continues(whole: Path, text_file: Path, tmp_path: Path) -> None:
    with started(*long_flags(text_file), cwd=tmp_path) as process:
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
        (["--batch-size", "7"], "2 processes cannot split a batch of 7"),
        (["--data", "no such file"], "no such file"),
    ],
)
def test_a_mistake_is_reported_once(flags: list[str], message: str, text_file: Path, tmp_path: Path) -> None:
    given = [*FLAGS, "--data", str(text_file), *flags]
    done = subprocess.run(torchrun(*given), cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("charformer-train:")]
    assert len({*told}) == 1, done.stderr
    assert message in told[0]


def test_a_run_of_two_processes_continues_with_one(text_file: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--data", str(text_file), "--decay-fraction", "0"]
    alone = [sys.executable, "-m", "charformer.commands.train"]
    for command in (
        [*torchrun(*flags), "--steps", "20", "--out", "run"],
        [*alone, "--resume", "--steps", "40", "--out", "run"],
        [*alone, *flags, "--steps", "40", "--out", "one"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    curves = [[row["val_loss"] for row in RunDir(tmp_path / name).read_metrics()] for name in ("run", "one")]
    assert len(curves[0]) == 3
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.parametrize(
    ("saved", "changed", "code"),
    [("nothing", [], 0), ("all", [], 0), ("all", ["--seed", "7"], 2), ("weights", [], 2)],
    ids=["cut off before its first save", "begun", "another run", "a run whose state is gone"],
)
def test_what_a_restart_finds(saved: str, changed: list[str], code: int, text_file: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--data", str(text_file), "--steps", "20", "--out", "run"]
    train = [sys.executable, "-m", "charformer.commands.train", *flags]
    subprocess.run(train, cwd=tmp_path, check=True, capture_output=True)
    run = RunDir(tmp_path / "run")
    before = run.weights_sha256()
    if saved != "all":
        run.state.unlink()
    if saved == "nothing":
        run.weights.unlink()
    restarted = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
    restarted |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [*train, *changed], cwd=tmp_path, env=os.environ | restarted, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == code, done.stderr
    assert ("holds a run" in done.stderr) == (code == 2)
    assert run.weights_sha256() == before

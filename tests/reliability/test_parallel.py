"""Train with two processes: through torchrun, and for what it takes no part in, forked from one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from charformer.commands.train_arguments import build_parser
from charformer.commands.train_run import _lock_and_prepare
from charformer.runs.folder import RunDir
from charformer.threads import LoadProbe
from charformer.training.distributed import World
from charformer.ui.console import PlainConsole
from tests.commands import call
from tests.conftest import TINY
from tests.kernels.marks import needs_interpreter
from tests.reliability.test_disk import content

FLAGS = [*TINY, "--preset", "fast", "--dtype", "float32", "--eval-interval", "20"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and sends signals")

Train = Callable[..., list[tuple[int, str, str]]]


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
def both() -> Iterator[Train]:
    """Return a function that trains with two processes, and returns the exit code, output and errors of each."""
    command = [sys.executable, "-m", "tests.reliability.ranks"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def train(*flags: str | Path, **variables: str) -> list[tuple[int, str, str]]:
            print(json.dumps([[str(flag) for flag in flags], variables]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield train


@pytest.fixture(scope="module")
def whole(both: Train, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undisturbed run by two processes, with dropout."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert [code for code, _, _ in both(*long_flags(text_file, out))] == [0, 0]
    return out


def long_flags(text_file: Path, out: str | Path) -> list[str]:
    return [*FLAGS, "--data", str(text_file), "--steps", "200", "--attention-dropout", "0.1", "--out", str(out)]


def test_two_processes_learn_what_one_does(both: Train, text_file: Path, tmp_path: Path) -> None:
    curves = {}
    for name in ("one", "two"):
        first = tmp_path / name / "first"
        tune = ["--stage", "finetune", "--init-from", str(first), "--steps", "20", "--eval-interval", "10"]
        runs = {
            "first": [*FLAGS, "--steps", "40"],
            "attention": [*tune, "--dtype", "float32", "--freeze"],
            "trunk": [*tune, "--dtype", "float32", "--freeze", "trunk"],
        }
        for out, flags in runs.items():
            given = [*flags, "--data", str(text_file), "--out", str(tmp_path / name / out)]
            if name == "one":
                done = call("charformer-train", *given, cwd=tmp_path)
                assert done.returncode == 0, done.stderr
            else:
                codes, outputs, errors = zip(*both(*given), strict=True)
                assert codes == (0, 0), errors
                assert "".join(outputs).count("validation loss") == 1, "one process speaks"
            rows = RunDir(tmp_path / name / out).read_metrics()
            curves[name, out] = [loss for row in rows for loss in (row["train_loss"], row["val_loss"])]
    for out in runs:
        assert curves["two", out] == pytest.approx(curves["one", out], abs=1e-4)
        assert curves["one", out][-1] < curves["one", out][1]


def test_two_processes_agree_on_patience_and_on_the_correction_of_a_prior(
    both: Train, english: str, tmp_path: Path
) -> None:
    texts = [tmp_path / "old.txt", tmp_path / "new.txt"]
    texts[0].write_text(english[:3000], encoding="utf-8")
    texts[1].write_text(english[:3000].swapcase(), encoding="utf-8")
    shape = [*TINY[:-2], "--preset", "nano", "--ngram-order", "3", "--dtype", "float32"]
    curves = {}
    for name in ("one", "two"):
        first = tmp_path / name / "first"
        runs = {
            "first": [*shape, "--data", texts[0], "--steps", "200", "--eval-interval", "5", "--patience", "1"],
            "second": ["--stage", "finetune", "--freeze", "all", "--init-from", first, "--data", texts[1]],
        }
        for out, flags in runs.items():
            given = [*map(str, flags), "--out", str(tmp_path / name / out)]
            results = both(*given) if name == "two" else [(call("charformer-train", *given, cwd=tmp_path).returncode,)]
            assert {code for code, *_ in results} == {0}, results
            rows = RunDir(tmp_path / name / out).read_metrics()
            curves[name, out] = [loss for row in rows for loss in (row["train_loss"], row["val_loss"])]
    for out in runs:
        assert curves["two", out] == pytest.approx(curves["one", out], abs=1e-3)
    assert 4 < len(curves["one", "first"]) < 2 * (1 + 200 // 5), "patience ends the training early"
    assert len(curves["one", "second"]) == 2


def test_a_restart_does_not_take_the_run_that_is_overwritten_for_its_own(
    trained_run: Path, text_file: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    flags = ["--data", str(text_file), "--out", str(run), "--steps", "40", "--eval-interval", "20", *TINY]
    args = build_parser().parse_args([*flags, "--overwrite"])
    quiet = PlainConsole(quiet=True)
    for restarts in (0, 1):  # the first process ends before it clears the folder
        world = World(0, 1, 0, restarts, is_launched=True)
        with ExitStack() as held:
            assert not _lock_and_prepare(args, world, LoadProbe(), held, quiet, quiet).is_resumed


@needs_interpreter
def test_two_processes_check_their_kernels_together(both: Train, text_file: Path, tmp_path: Path) -> None:
    flags = ["--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--block-size", "8", "--batch-size", "2"]
    flags += ["--ngram-order", "0", "--steps", "1", "--eval-batches", "1", "--score-characters", "50"]
    flags += ["--dtype", "float32"]
    results = both(*flags, "--data", text_file, "--out", tmp_path / "run", CHARFORMER_KERNELS="triton")
    assert [code for code, *_ in results] == [0, 0], results


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_killed_process_is_started_again_and_costs_nothing(
    victim: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    with started(*long_flags(text_file, "run"), cwd=tmp_path) as process:
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


def test_a_signal_stops_and_saves_and_resume_continues(
    both: Train, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    with started(*long_flags(text_file, "run"), cwd=tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "saved after step" in output, output
    assert not (tmp_path / "run" / ".lock").exists()
    assert [code for code, _, _ in both("--resume", "--out", tmp_path / "run")] == [0, 0]
    assert content(tmp_path / "run") == content(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "7"], "2 processes cannot split a batch of 7"),
        (["--data", "no such file"], "no such file"),
    ],
)
def test_a_mistake_is_reported_once(
    flags: list[str], message: str, both: Train, text_file: Path, tmp_path: Path
) -> None:
    codes, _, errors = zip(*both(*FLAGS, "--data", text_file, "--out", tmp_path / "run", *flags), strict=True)
    assert codes == (2, 2)
    told = [line for text in errors for line in text.splitlines() if line.startswith("charformer-train:")]
    assert len(told) == 1, errors
    assert message in told[0]


def test_a_run_of_two_processes_continues_with_one(both: Train, text_file: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--data", str(text_file), "--decay-fraction", "0"]
    assert both(*flags, "--steps", "20", "--out", tmp_path / "run")[0][0] == 0
    for more in (["--resume", "--out", "run"], [*flags, "--out", "one"]):
        done = call("charformer-train", *more, "--steps", "40", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    curves = [[row["val_loss"] for row in RunDir(tmp_path / name).read_metrics()] for name in ("run", "one")]
    assert len(curves[0]) == 3
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.parametrize(
    ("saved", "changed", "code"),
    [("nothing", [], 0), ("all", [], 0), ("all", ["--seed", "7"], 2), ("weights", [], 2)],
    ids=["cut off before its first save", "begun", "another run", "a run whose state is gone"],
)
def test_what_a_restart_finds(
    saved: str,
    changed: list[str],
    code: int,
    trained_run: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained_run, run.path)
    before = run.weights_sha256()
    if saved != "all":
        run.state.unlink()
    if saved == "nothing":
        run.weights.unlink()
    restarted = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
    restarted |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in restarted.items():
        monkeypatch.setenv(name, value)
    flags = [*TINY, "--data", text_file, "--steps", "40", "--eval-interval", "20", "--out", "run"]
    done = call("charformer-train", *flags, *changed, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert ("holds a run" in done.stderr) == (code == 2)
    assert run.weights_sha256() == before

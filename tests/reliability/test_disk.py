"""Test a run whose folder can no longer be written to."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_tensors
from tests.commands import call
from tests.conftest import TINY

FLAGS = [*TINY, "--eval-interval", "20", "--eval-batches", "1", "--dtype", "float32", "--attention-dropout", "0.1"]


def saved_in(errors: str) -> Path:
    """Return the folder that the one line of an interrupted training names."""
    line = errors.strip().splitlines()[-1]
    found = re.search(
        r"cannot write .*; the training was saved in (\S+) instead, after step (\d+); to continue: (.*)", line
    )
    assert found, errors
    assert found[3] == f"charformer-train --stage pretrain --resume --out {found[1]}"
    return Path(found[1])


def content(folder: Path) -> dict[str, object]:
    """Return the run's content without its times."""
    run = RunDir(folder)
    tensors, notes = read_tensors(run.state)
    counters = {key: value for key, value in json.loads(notes["counters"]).items() if not key.endswith("_seconds")}
    curve = [(row["step"], row["train_loss"], row["val_loss"]) for row in run.read_metrics()]
    state = {name: array.tobytes() for name, array in tensors.items()}
    return {"weights": run.weights_sha256(), "counters": counters, "curve": curve, "state": state}


@pytest.fixture(scope="module")
def whole(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    done = call("charformer-train", *long_flags(text_file), "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def long_flags(text_file: Path) -> list[str]:
    return [*FLAGS, "--data", str(text_file), "--steps", "200"]


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps folders whose files are open")
@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_is_removed_costs_nothing(instead: str, whole: Path, text_file: Path, tmp_path: Path) -> None:
    start = [sys.executable, "-m", "charformer.commands.train", *long_flags(text_file), "--out", "gone"]
    with subprocess.Popen(start, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        metrics = tmp_path / "gone" / "metrics.jsonl"
        until = time.monotonic() + 60
        while not (metrics.is_file() and metrics.read_text("utf-8").count("\n") > 2) and time.monotonic() < until:
            time.sleep(0.005)
        (tmp_path / "gone").rename(tmp_path / "elsewhere")
        if instead == "a file":
            (tmp_path / "gone").write_text("in the way", encoding="utf-8")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    folder = saved_in(errors.decode())
    try:
        resumed = call("charformer-train", "--resume", "--out", str(folder), cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert content(folder) == content(whole)
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_a_full_disk_costs_nothing(text_file: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # 1.3 times the size of a run, which fits once, but not while its state is being replaced
    script = 'mount -t tmpfs -o size=640k none "$0" && exec "$@"'
    flags = [*FLAGS, "--data", str(text_file), "--steps", "60", "--out", str(small / "run")]
    start = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(small)]
    try:
        subprocess.run([*start, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a file system")
    command_line = [*start, sys.executable, "-m", "charformer.commands.train", *flags]
    done = subprocess.run(command_line, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "No space left on device" in done.stderr
    if "nothing was trained yet" not in done.stderr:
        shutil.rmtree(saved_in(done.stderr))

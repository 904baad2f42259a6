"""Test two trainings that want one folder."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.lock import BEYOND, locked

HOLD = """
import sys, time
from charformer.runs.folder import RunDir
from charformer.runs.lock import locked
with locked(RunDir(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with holder(run.path) as process:
        for _ in range(2):  # asking does not change the answer
            with pytest.raises(UserError, match=f"another training, process {process.pid}; wait"), locked(run):
                pass
        process.kill()
    assert run.lock.exists()
    with locked(run):  # a killed process keeps no lock
        assert run.lock.read_text("utf-8") == str(os.getpid())
    assert not run.lock.exists()
    run.check_free(overwrite=False)


def test_the_holder_is_named_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows locks a byte after the content, so the file is at that byte when the lock is refused."""

    def refuse(descriptor: int, mode: int, size: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == BEYOND
        raise PermissionError

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=refuse))
    monkeypatch.setattr(sys, "platform", "win32")
    run = RunDir(tmp_path)
    run.lock.write_text("4711", encoding="utf-8")
    with pytest.raises(UserError, match="another training, process 4711; wait"), locked(run):
        pass


def test_it_is_given_back_after_an_error_too(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(OSError, match="the body's own"), locked(run):
            raise OSError("the body's own")
    assert not run.path.exists(), "a folder in which nothing was done is not left behind"


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps the file")
def test_many_processes_in_turn_are_never_two_at_a_time(tmp_path: Path) -> None:
    """Each process removes the lock file at its end, and the next must not lock a file that is gone."""
    script = """
import sys, os, time
from pathlib import Path
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.lock import locked
run, done = RunDir(sys.argv[1]), 0
while done < 100:
    try:
        with locked(run):
            os.close(os.open(run.path / "one", os.O_CREAT | os.O_EXCL))
            (run.path / "one").unlink()
            done += 1
    except UserError:
        time.sleep(0.0005)
"""
    began = time.monotonic()
    processes = [subprocess.Popen([sys.executable, "-c", script, tmp_path]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert time.monotonic() - began < 60


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("link", ["symbolic", "hard", "dangling"])
def test_a_link_in_a_stranger_s_run_is_not_followed(link: str, tmp_path: Path) -> None:
    run, precious = RunDir(tmp_path / "run"), tmp_path / "precious"
    run.path.mkdir()
    if link != "dangling":
        precious.write_text("mine", encoding="utf-8")
    (run.lock.hardlink_to if link == "hard" else run.lock.symlink_to)(precious)
    with pytest.raises(UserError, match=r"\.lock"), locked(run):
        pass
    assert (precious.read_text("utf-8") if precious.exists() else None) == (None if link == "dangling" else "mine")


@pytest.mark.skipif(os.name != "posix", reason="Windows moves no folder with an open file")
def test_a_folder_that_was_moved_away_takes_its_lock_with_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with holder(run.path) as process:
        run.path.rename(tmp_path / "old")
        with locked(run):
            process.terminate()
            process.wait()
            assert run.lock.exists()
    assert not run.lock.exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="cannot create the folder"), locked(RunDir(tmp_path / "run")):
        pass
    (tmp_path / "other" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*\.lock"), locked(RunDir(tmp_path / "other")):
        pass

import os
import subprocess
import sys
import time

import pytest

from charformer.threads import LoadProbe


def processes(count: int) -> list["subprocess.Popen[bytes]"]:
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]


def test_a_machine_that_others_keep_busy_leaves_one_thread() -> None:
    cores = os.cpu_count() or 1
    busy = processes(cores)
    try:
        time.sleep(0.2)
        assert LoadProbe().threads(cores) == 1
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_work_of_our_own_is_not_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # In 1 s all processors together worked 1.5 s, and this process 1.4 s of that.
    counts = {"busy": iter([100.0, 101.5]), "own": iter([10.0, 11.4]), "now": iter([0.0, 1.0, 1.0])}
    monkeypatch.setattr("charformer.threads._busy_seconds", lambda: next(counts["busy"]))
    monkeypatch.setattr("charformer.threads.time.process_time", lambda: next(counts["own"]))
    monkeypatch.setattr("charformer.threads.time.perf_counter", lambda: next(counts["now"]))
    monkeypatch.setattr("charformer.threads.os.cpu_count", lambda: 2)
    assert LoadProbe().threads(2) == 2


@pytest.mark.parametrize(("busy", "most", "threads"), [(0.0, 4, 4), (1.0, 4, 3), (2.6, 4, 1), (9.0, 4, 1), (0.0, 2, 2)])
def test_threads_are_what_others_leave(busy: float, most: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, now = iter([50.0, 50.0 + busy]), iter([0.0, 1.0, 1.0])
    monkeypatch.setattr("charformer.threads._busy_seconds", lambda: next(counts))
    monkeypatch.setattr("charformer.threads.time.process_time", lambda: 3.0)
    monkeypatch.setattr("charformer.threads.time.perf_counter", lambda: next(now))
    monkeypatch.setattr("charformer.threads.os.cpu_count", lambda: 4)
    assert LoadProbe().threads(most) == threads

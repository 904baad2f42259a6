"""Test work in processes: results, exceptions and crashes each belong to their own item."""

import os
import time

import pytest

from kernels.checks.workers import Failed, FatalError, run_each


def work(item: int) -> tuple[int, int]:
    if item == 3:
        raise ValueError("three\nand more")
    if item == 5:
        os._exit(7)
    if item == 6:
        raise FatalError("the GPU is gone")
    return item**2, os.getpid()


@pytest.mark.parametrize("processes", [1, 3])
def test_each_item_has_its_own_result(processes: int) -> None:
    found = dict(run_each(work, range(9), processes))
    assert found.keys() == set(range(9))
    failed = {item: result.reason for item, result in found.items() if isinstance(result, Failed)}
    assert failed == {3: "ValueError: three", 5: "its process ended with exit code 7", 6: "the GPU is gone"}
    rest = {item: result for item, result in found.items() if item not in failed}
    assert all(result[0] == item**2 for item, result in rest.items())
    if processes == 1:
        pids = [rest[item][1] for item in (0, 1, 2, 4, 7, 8)]
        assert pids[:4] == [pids[0]] * 4, "an exception does not end a process"
        assert pids[4:] == [pids[4]] * 2
        assert pids[4] != pids[0], "a crash does"


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_nothing_is_sampled_after_an_early_end() -> None:
    start = time.monotonic()
    for _ in run_each(sleep, [0.0, 60.0], 2):
        break
    assert time.monotonic() - start < 30


def test_nothing_to_do() -> None:
    assert list(run_each(work, [], 2)) == []

"""Run tests.reliability.kills with a few kills; `make soak` makes 200."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.harness import results

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

BENCH = "import sys; from tests.reliability import kills; sys.exit(kills.main(sys.argv[1:]))"
UNTIDY = "from charformer.runs.folder import RunDir; RunDir.tidy = lambda run: (run.path / 'left.tmp').touch(); "


def bench(folder: Path, count: int, script: str) -> tuple[int, dict[str, dict[str, int]]]:
    """Return the exit code and the verdicts by kind, in a new process, since forks need one without threads."""
    command = [sys.executable, "-c", script, "--count", str(count), "--json", str(folder / "r.json")]
    code = subprocess.run(command, capture_output=True, timeout=300).returncode
    rows = results.read_result(folder / "r.json")["rows"]
    extra = set(results.ROW) | {"kind"}
    return code, {row["kind"]: {key: value for key, value in row.items() if key not in extra} for row in rows}


def test_killed_trainings_continue_as_if_nothing_had_happened(tmp_path: Path) -> None:
    code, found = bench(tmp_path, 6, BENCH)
    assert code == 0, found
    assert sum(found["in a save"].values()) == 3
    assert found["in a save"]["identical"] >= 1
    assert sum((Counter(verdicts) for verdicts in found.values()), Counter()).total() == 6


def test_harm_is_seen(tmp_path: Path) -> None:
    code, found = bench(tmp_path, 4, UNTIDY + BENCH)
    assert code == 1
    assert found["in a save"]["harm: other files"] >= 1

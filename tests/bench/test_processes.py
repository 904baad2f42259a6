"""Run bench.processes for a few steps."""

from pathlib import Path

import pytest

from bench import processes
from bench.harness import results


def test_it_times_one_process_and_two(text_file: Path, tmp_path: Path) -> None:
    flags = ["--preset", "nano", "--steps", "4", "--rounds", "1", "--data", str(text_file)]
    assert processes.main([*flags, "--json", str(tmp_path / "r.json")]) == 0
    result = results.read_result(tmp_path / "r.json")
    assert result["config"]["data"] == text_file.name
    rows = result["rows"]
    assert [(row["processes"], row["threads"]) for row in rows] == [(1, 2), (2, 1)]
    assert all(row["chars_per_second"]["p50"] > 0 for row in rows)


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert processes.main(["--preset", "nano", "--data", str(tmp_path / "no such file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.processes: there is no file")

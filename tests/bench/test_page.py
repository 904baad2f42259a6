"""Run bench.page as a user does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness.chromium import EXECUTABLE


@pytest.mark.skipif(EXECUTABLE is None, reason="there is no Chromium on this machine: apt install chromium")
def test_page(trained_run: Path, tmp_path: Path) -> None:
    flags = ["--run", str(trained_run), "--texts", "2", "--characters", "60", "--precision", "fp32"]
    command = [sys.executable, "-m", "bench.page", *flags, "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"]
    assert row["first_differences"] == [None, None]
    assert row["page_bytes"] > row["model_bytes"] + row["runtime_bytes"]
    assert 0 < row["first_character_ms"]["p20"] <= row["first_character_ms"]["p80"]
    assert row["chars_per_second"]["p50"] > 0

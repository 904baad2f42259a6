"""Run tests.reliability.soak for seconds; `make soak` runs it for half an hour."""

import sys
from pathlib import Path

import pytest

from bench.harness import results
from tests.reliability import soak

TINY = (
    "--preset nano --n-layer 1 --n-head 1 --n-embd 32 --block-size 24 --batch-size 4 --steps 1000000 --eval-batches 1"
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_soak_reports_memory_and_files_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 0.2)
    monkeypatch.setattr(soak, "MAX_SLOPE", float("inf"))  # over so short a time a slope means nothing
    flags = ["--minutes", "0.4", "--json", str(tmp_path / "r.json"), "--flags", f"{TINY} --eval-interval 100"]
    assert soak.main(flags) == 0
    (row,) = results.read_result(tmp_path / "r.json")["rows"]
    assert row["exit_code"] == 143
    assert row["left_behind"] == []
    assert row["evaluations"] > 2
    assert row["samples"] >= 1
    assert row["looks"] > 10


def test_a_training_that_ends_early_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "0.1", "--flags", "--preset nothing"]) == 2
    assert "ended early" in capsys.readouterr().err

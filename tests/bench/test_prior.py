"""Run bench.prior as a user does, on a short text."""

from pathlib import Path

import pytest

from bench import prior
from bench.harness import results


def test_each_part_of_a_prior_is_left_out_with_the_same_settings(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ["as it is", "no prior", "no input", "no correction", "no gate", "no folds", "order 3"]
    flags = ["--steps", "3", "--data", str(text_file), "--dtype", "float32", "--variant", *variants]
    assert prior.main([*flags, "--json", str(tmp_path / "r.json")]) == 0
    rows = results.read_result(tmp_path / "r.json")["rows"]
    assert [row["variant"] for row in rows] == variants
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == len(variants)
    assert all((row["table_loss"] is None) == (row["variant"] == "no prior") for row in rows)
    assert rows[0]["table_loss"] == pytest.approx(rows[0]["curve"][0]["val_loss"], abs=0.2)
    assert rows[-1]["ngrams"] < rows[0]["ngrams"]
    assert "parts of an n-gram prior" in capsys.readouterr().out


def test_a_preset_without_a_prior_says_so(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prior.main(["--preset", "baseline", "--data", str(text_file)]) == 2
    assert "no n-gram prior" in capsys.readouterr().err

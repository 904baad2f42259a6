"""Run bench.text_length as a user does, on two short texts."""

from pathlib import Path

import pytest

from bench import text_length
from bench.harness import results


def test_a_grid_of_steps_and_dropouts_of_each_text(
    text_file: Path, english: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(english[:6000], encoding="utf-8")
    file = tmp_path / "r.json"
    flags = ["--data", str(short), str(text_file), "--dtype", "float32", "--json", str(file)]
    assert text_length.main([*flags, "--steps", "2", "4", "--dropout", "0", "0.5", "--ngram-order", "3"]) == 0
    rows = results.read_result(file)["rows"]
    assert len(rows) == 8
    assert {(row["text"], row["changes"]["dropout"], row["changes"]["max_steps"]) for row in rows} == {
        (text, dropout, steps) for text in ("short.txt", "docs.txt") for dropout in (0, 0.5) for steps in (2, 4)
    }
    assert rows[0]["passes"] == pytest.approx(2 * 8 * 256 / 5400, rel=1e-3)
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == 8
    assert "counting" not in capsys.readouterr().err
    assert (
        text_length.main(["--data", str(short), "--dtype", "float32", "--ngram-order", "0", "--json", str(file)]) == 0
    )
    assert results.read_result(file)["rows"][0]["changes"]["max_steps"] == 16, "six passes over 5,400 characters"

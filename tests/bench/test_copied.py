"""bench.copied: matching statistics against a naive reference, and the program as people type it."""

import random
from pathlib import Path

import pytest

from bench import copied
from bench.harness import results


def test_matches_are_the_longest_pieces() -> None:
    draw = random.Random(0)
    text, sample = ("".join(draw.choices("ab ", k=count)) for count in (300, 60))

    def longest(place: int) -> int:
        return max(length for length in range(len(sample) - place + 1) if sample[place : place + length] in text)

    found = copied.matches(sample, text, lambda *_: None)
    assert list(found) == [longest(place) for place in range(len(sample))]
    assert list(copied.matches("xx" + text[5:20], text, lambda *_: None))[:3] == [0, 0, 15]


def test_the_samples_of_runs_beside_the_validation_part(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("charformer.data.corpus.cache_folder", lambda: trained_run.parent / "cache")
    file = tmp_path / "r.json"
    assert copied.main(["--run", str(trained_run), "--characters", "200", "--json", str(file)]) == 0
    held_out, sampled = results.read_result(file)["rows"]
    assert held_out["mean"] > sampled["mean"] > 0, "a run of 40 steps writes noise"
    assert 0 <= sampled["in_long_matches"] <= held_out["in_long_matches"] <= 1
    assert "validation part itself" in capsys.readouterr().out

"""Run bench.ablation as a user does, on a short text."""

from pathlib import Path
from typing import Any

import pytest

from bench import ablation
from bench.harness import results
from charformer.presets import PRESETS


def run(of: str, text_file: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    given = ["--of", of, "--data", str(text_file), "--dtype", "float32", *flags]
    assert ablation.main([*given, "--json", str(folder / "r.json")]) == 0
    return results.read_result(folder / "r.json")["rows"]


def test_each_ingredient_is_left_out_with_the_same_settings(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = dict(list(ablation.VARIANTS["ingredients"].items())[:3])
    monkeypatch.setitem(ablation.VARIANTS, "ingredients", three)
    rows = run("ingredients", text_file, tmp_path, "--steps", "4")
    assert [row["changes"] for row in rows] == [{}, {"rope_base": 0.0}, {"relu_power": 1}]
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == 3
    assert all(row["characters"] == 4 * 8 * 256 for row in rows)
    assert "ingredients" in capsys.readouterr().out


def test_each_part_of_a_prior_is_left_out_with_the_same_settings(text_file: Path, tmp_path: Path) -> None:
    names = ["all", "no prior", "no input", "no correction", "no gate", "no folds", "order 3"]
    rows = run("prior", text_file, tmp_path, "--steps", "3", "--variant", *names)
    assert [row["variant"] for row in rows] == names
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == len(names)
    assert all((row["table_loss"] is None) == (row["variant"] == "no prior") for row in rows)
    assert rows[0]["table_loss"] == pytest.approx(rows[0]["curve"][0]["val_loss"], abs=0.2)
    assert rows[-1]["ngrams"] < rows[0]["ngrams"]


def test_texts_of_several_lengths_take_the_steps_of_a_training_or_of_the_variant(
    text_file: Path, english: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(english[:6000], encoding="utf-8")
    names = ["charformer-train's steps", "30 steps, dropout 0.2"]
    rows = run("length", short, tmp_path, "--data", str(short), str(text_file), "--steps", "2", "--variant", *names)
    assert [(row["text"], row["steps"]) for row in rows] == [
        ("short.txt", 2), ("short.txt", 30), ("docs.txt", 2), ("docs.txt", 30)
    ]  # fmt: skip
    assert rows[0]["passes"] == pytest.approx(2 * 8 * 256 / 5400, rel=1e-3)
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == 4
    rows = run("length", short, tmp_path, "--variant", names[0])
    assert rows[0]["steps"] == 16, "six passes over 5,400 characters"


def test_only_variants_that_differ_from_the_preset_are_trained() -> None:
    nano = PRESETS["nano"]
    assert set(ablation.variants(nano, "ingredients")) == set(ablation.VARIANTS["ingredients"])
    assert "order 7" not in ablation.variants(nano, "prior")


@pytest.mark.parametrize(
    ("of", "words"),
    [("ingredients", "none of the ingredients"), ("prior", "no n-gram prior"), ("length", "no variant")],
)
def test_a_preset_without_ingredients_says_so(of: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["--of", of, "--preset", "baseline", "--variant", "30 steps"]) == 2
    assert words in capsys.readouterr().err

"""Run bench.ablation as a user does, on a short text."""

from pathlib import Path
from typing import Any

import pytest

from bench import ablation
from bench.harness import results
from bench.harness.variants import with_changes
from charformer.presets import PRESETS


def run(of: str, text_file: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    given = ["--of", of, "--data", str(text_file), "--rounds", "1", "--dtype", "float32", *flags]
    assert ablation.main([*given, "--json", str(folder / "r.json")]) == 0
    return results.read_result(folder / "r.json")["rows"]


def test_each_ingredient_is_left_out_with_the_same_settings(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "CHARACTERS", 5)
    three = dict(list(ablation.VARIANTS["ingredients"].items())[:3])
    monkeypatch.setitem(ablation.VARIANTS, "ingredients", three)
    rows = run("ingredients", text_file, tmp_path, "--steps", "4")
    assert [row["changes"] for row in rows] == [{}, {"rope_base": 0.0}, {"relu_power": 1}]
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == 3
    assert all(row["characters"] == 4 * 8 * 256 and row["sampling"]["chars_per_second"]["p50"] > 0 for row in rows)
    assert "ingredients" in capsys.readouterr().out


def test_each_part_of_a_prior_is_left_out_with_the_same_settings(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "CHARACTERS", 5)
    names = ["all", "no prior", "no input", "no correction", "no gate", "no folds", "order 3"]
    monkeypatch.setitem(ablation.VARIANTS, "prior", {name: ablation.VARIANTS["prior"][name] for name in names})
    rows = run("prior", text_file, tmp_path, "--steps", "3")
    assert [row["variant"] for row in rows] == names
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == len(names)
    assert all((row["table_loss"] is None) == (row["variant"] == "no prior") for row in rows)
    assert rows[0]["table_loss"] == pytest.approx(rows[0]["curve"][0]["val_loss"], abs=0.2)
    assert rows[-1]["ngrams"] < rows[0]["ngrams"]
    assert ["sampling" in row for row in rows] == [True, True, False, False, False, False, True]


def test_changes_are_the_preset_s_and_nothing_else() -> None:
    nano = PRESETS["nano"]
    assert set(ablation.variants(nano, "ingredients")) == set(ablation.VARIANTS["ingredients"])
    assert "order 7" not in ablation.variants(nano, "prior")
    assert with_changes(nano, {}) == nano
    changed = with_changes(nano, {"rope_base": 0.0, "zero_init": 0})
    assert (changed.model.rope_base, changed.pretrain.zero_init) == (0.0, 0)
    assert changed.finetune == nano.finetune


@pytest.mark.parametrize(("of", "words"), [("ingredients", "none of the ingredients"), ("prior", "no n-gram prior")])
def test_a_preset_without_ingredients_says_so(of: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["--of", of, "--preset", "baseline"]) == 2
    assert words in capsys.readouterr().err

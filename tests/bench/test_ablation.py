"""Run bench.ablation as a user does, on a short text."""

from pathlib import Path

import pytest

from bench import ablation
from bench.harness import results
from charformer.presets import PRESETS


def test_each_ingredient_is_left_out_with_the_same_settings(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "WITHOUT", dict(list(ablation.WITHOUT.items())[:3]))
    flags = ["--steps", "4", "--data", str(text_file), "--rounds", "1", "--characters", "5", "--dtype", "float32"]
    assert ablation.main([*flags, "--json", str(tmp_path / "r.json")]) == 0
    rows = results.read_result(tmp_path / "r.json")["rows"]
    assert [row["changes"] for row in rows] == [{}, {"rope_base": 0.0}, {"relu_power": 1}]
    assert len({row["curve"][-1]["val_loss"] for row in rows}) == 3
    assert all(row["characters"] == 4 * 8 * 256 and row["sampling"]["chars_per_second"]["p50"] > 0 for row in rows)
    assert "each ingredient left out" in capsys.readouterr().out


def test_changes_are_the_preset_s_and_nothing_else() -> None:
    nano = PRESETS["nano"]
    assert set(ablation.variants(nano)) == set(ablation.WITHOUT)
    assert ablation.with_changes(nano, {}) == nano
    changed = ablation.with_changes(nano, {"rope_base": 0.0, "zero_init": 0})
    assert (changed.model.rope_base, changed.pretrain.zero_init) == (0.0, 0)
    assert changed.finetune == nano.finetune


def test_a_preset_without_ingredients_says_so(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["--preset", "baseline", "--data", str(text_file)]) == 2
    assert "none of the ingredients" in capsys.readouterr().err

from dataclasses import replace

import pytest

from charformer.config import ModelConfig, TrainConfig
from charformer.errors import UserError
from charformer.presets import DEFAULT_PRESETS, PRESETS


def test_presets_are_the_baseline_s_as_its_page_and_as_its_code_say() -> None:
    for name, batch_size, block_size in (("baseline", 32, 384), ("baseline-as-coded", 34, 128)):
        preset = PRESETS[name]
        assert preset.model == ModelConfig(
            n_layer=6, n_head=6, n_embd=384, block_size=block_size, dropout=0.2, attention_dropout=0.2
        )
        for course in (preset.pretrain, preset.finetune):
            assert (course.batch_size, course.learning_rate, course.max_steps) == (batch_size, 3e-4, 5000)
            assert (course.weight_decay, course.beta2, course.warmup_steps, course.decay_fraction) == (0, 0.999, 0, 0)


def test_fast_and_best_are_of_the_baseline_s_size() -> None:
    for name in ("fast", "best"):
        model = PRESETS[name].model
        assert (model.n_layer, model.n_head, model.n_embd) == (6, 6, 384)
    assert set(DEFAULT_PRESETS.values()) <= set(PRESETS)


def test_configs_survive_their_dicts() -> None:
    for preset in PRESETS.values():
        assert ModelConfig.from_dict(preset.model.to_dict()) == preset.model
        assert TrainConfig.from_dict(preset.finetune.to_dict()) == preset.finetune


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_embd": 100, "n_head": 3}, "`n_embd` 100 is not a multiple of `n_head` 3"),
        ({"n_layer": 0}, "`n_layer` is 0"),
        ({"dropout": 1.0}, "`dropout` is 1.0"),
        ({"dropout": -0.1}, "`dropout` is -0.1"),
        ({"dropout": float("nan")}, "`dropout` is nan"),
        ({"block_size": -3}, "`block_size` is -3"),
        ({"n_layer": 2.0}, "`n_layer` is 2.0; it must be a whole number"),
        ({"n_layer": True}, "`n_layer` is True; it must be a whole number"),
        ({"dropout": "0.1"}, "`dropout` is '0.1'; it must be a number"),
        ({"dropout": None}, "`dropout` is None; it must be a number"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        replace(PRESETS["nano"].model, **change)


@pytest.mark.parametrize(
    "change", [{"rope_base": 0.5}, {"rope_base": 10.0, "n_embd": 15, "n_head": 3}, {"relu_power": 3}], ids=str
)
def test_impossible_switches_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"rope_base|relu_power"):
        ModelConfig(**change)


def test_muon_without_a_rate_to_follow_is_refused() -> None:
    with pytest.raises(UserError, match="`learning_rate` must be above 0"):
        TrainConfig(muon_learning_rate=0.02, learning_rate=0.0)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"n_layer": "6"}, "must be a whole number"),
        ({"n_layer": 6.0}, "must be a whole number"),
        ({"n_layer": True}, "must be a whole number"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"n_layer": 10**400}, "`n_layer` is 1000"),
    ],
)
def test_a_stranger_s_config_is_checked(broken: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ModelConfig.from_dict(ModelConfig(vocab_size=10).to_dict() | broken)


def test_a_missing_field_takes_its_default() -> None:
    values = ModelConfig(vocab_size=10, n_layer=2).to_dict()
    del values["dropout"]
    assert ModelConfig.from_dict(values) == ModelConfig(vocab_size=10, n_layer=2, dropout=0.2)
    earlier = {"vocab_size": 10, "dropout": 0.1}  # of attention weights too
    assert ModelConfig.from_dict(earlier) == ModelConfig(vocab_size=10, dropout=0.1, attention_dropout=0.1)

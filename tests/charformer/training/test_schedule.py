"""Test the learning rate by step, patience, and the number of steps by the length of the text."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Counters, Progress
from charformer.runs.record import RunRecord
from charformer.training.recipe import choose_recipe, steps_for
from charformer.training.schedule import last_step, learning_rate, plan_again, run_out_of_patience
from charformer.training.session import Place, prepare_pretrain, prepare_resume
from charformer.training.trainer import Trainer

CPU = Place(torch.device("cpu"))
MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=20, dropout=0.1)
CONFIG = TrainConfig(
    batch_size=8, learning_rate=1e-3, max_steps=200, eval_interval=5, eval_batches=2, decay_fraction=0.5, patience=2
)


def rates(config: TrainConfig, counters: Counters, steps: Sequence[int]) -> list[float]:
    return [learning_rate(config, replace(counters, step=step)) for step in steps]


def test_the_rate_rises_holds_and_falls() -> None:
    config = TrainConfig(learning_rate=1.0, max_steps=100, warmup_steps=10, decay_fraction=0.5)
    found = rates(config, Counters(), range(100))
    assert found[0] == pytest.approx(0.1)
    assert found[9:51] == [1.0] * 42
    assert found[75] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.02)
    assert set(rates(TrainConfig(), Counters(), range(5000))) == {3e-4}


def evaluate(config: TrainConfig, losses: Sequence[float], interval: int = 10) -> Counters:
    """Return the counters of a training whose evaluations gave these losses, from step 0 on, until it ends."""
    counters, seen = Counters(), []
    for number, loss in enumerate(losses):
        counters.step = number * interval
        if loss < counters.best_val_loss:
            counters.best_val_loss, counters.best_step = loss, counters.step
        seen.append((counters.step, loss))
        run_out_of_patience(config, counters, seen)
        if counters.step >= last_step(config, counters):
            break
    return counters


def test_at_the_plateau_patience_begins_the_decay() -> None:
    config = TrainConfig(learning_rate=1.0, max_steps=1000, decay_fraction=0.5, patience=2)
    counters = evaluate(config, [4, 3, 2, 2.1, 2.2])
    assert (counters.decay_step, last_step(config, counters)) == (40, 60)
    assert rates(config, counters, [39, 40, 50, 59]) == [1.0, 1.0, 0.5, pytest.approx(0.05)]
    assert last_step(config, evaluate(config, [4, 3, 2, 2.1, 1.9, 2.0, 1.8])) == 1000, "each second one is better"
    assert last_step(replace(config, patience=0), evaluate(replace(config, patience=0), [4, 5, 6, 7])) == 1000
    plain = replace(config, decay_fraction=0.0)
    assert last_step(plain, evaluate(plain, [4, 3, 3.1, 3.2])) == 30, "nothing decays, so it ends at once"


def test_while_the_rate_falls_only_a_rising_loss_ends_it() -> None:
    config = TrainConfig(learning_rate=1.0, max_steps=100, decay_fraction=0.8, patience=2)
    assert last_step(config, evaluate(config, [4, 3, 2, 2.5, 2.4, 2.6, 2.5])) == 100, "worse than the best, not rising"
    counters = evaluate(config, [4, 3, 2, 2.5, 2.6])
    assert (counters.step, last_step(config, counters), counters.decay_step) == (40, 40, 0)
    begun = evaluate(config, [4, 5, 6])  # the planned decay begins at step 20, with the second worse one
    assert last_step(config, begun) == 100


def test_a_training_that_is_planned_again_counts_only_later_evaluations() -> None:
    config = TrainConfig(learning_rate=1.0, max_steps=1000, decay_fraction=0.5, patience=2)
    counters = evaluate(config, [4, 3, 2, 2.1, 2.2])
    plan_again(counters)
    assert last_step(config, counters) == 1000
    assert rates(config, counters, [59, 499]) == [1.0, 1.0]
    seen = [(0, 4.0), (10, 3.0), (20, 2.0), (30, 2.1), (40, 2.2), (50, 2.3)]
    counters.step = 50
    assert run_out_of_patience(config, counters, seen) is None, "one evaluation since"
    counters.step = 60
    assert run_out_of_patience(config, counters, [*seen, (60, 2.4)]) is not None
    assert (counters.decay_step, counters.end_step) == (60, 90)


def stalling(english: str, folder: Path) -> Path:
    """Return a text whose validation part, in another script, gets worse with training."""
    path = folder / "mixed.txt"
    path.write_text(english[:9000] + "".join(chr(0x4E00 + code % 50) for code in range(1000)), encoding="utf-8")
    return path


def open_run(data: Path, folder: Path, config: TrainConfig = CONFIG) -> Trainer:
    session = prepare_pretrain(RunDir(folder), MODEL, config, "nano", corpus.load(str(data)), CPU)
    session.open()
    return session.trainer


def resume(trainer: Trainer, **changes: float) -> Trainer:
    session = prepare_resume(trainer.run, RunRecord.read(trainer.run), changes, trainer.corpus, CPU)
    session.open()
    return session.trainer


def test_patience_resumes_exactly(english: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = stalling(english, tmp_path)
    whole = open_run(data, tmp_path / "whole")
    with caplog.at_level(logging.INFO, "charformer"):
        steps = list(whole.steps())
    assert "validation has not improved in 2 evaluations: the learning rate falls from step" in caplog.text
    begins, ends = whole.counters.decay_step, whole.counters.step
    assert 0 < begins < ends < 100
    assert [step.last_step for step in steps if step.step < begins] == [200] * begins
    assert {step.last_step for step in steps if step.step >= begins} == {ends}
    assert steps[-1].learning_rate < steps[begins].learning_rate == 1e-3
    assert steps[-1].evaluation is not None
    stopped = open_run(data, tmp_path / "stopped")
    taken = list(itertools.islice(stopped.steps(), begins + 2))
    del taken[begins + 1 :]  # the next run takes the step after the last save again
    rest = list(resume(stopped).steps())
    losses = {step.step: float(step.loss) for step in [*taken, *rest]}
    assert losses == {step.step: float(step.loss) for step in steps}


def test_resuming_with_more_steps_and_another_dropout(english: str, tmp_path: Path) -> None:
    ended = open_run(stalling(english, tmp_path), tmp_path / "run")
    list(ended.steps())
    assert ended.is_finished
    assert resume(ended).is_finished
    again = resume(ended, max_steps=200)
    assert (again.is_finished, again.last_step, again.config.patience) == (False, 200, 0), "as many as were planned"
    assert resume(ended).last_step == 200, "a kill before the next save keeps the new plan"
    further = resume(ended, max_steps=300, dropout=0.4, attention_dropout=0.3)
    assert not further.is_finished
    assert further.model.blocks[0].dropout == 0.4
    record = RunRecord.read(further.run)
    assert (record.model.dropout, record.model.attention_dropout) == (0.4, 0.3)
    changed = {"max_steps": [200, 300], "dropout": [0.1, 0.4], "attention_dropout": [0.2, 0.3]}
    step = ended.counters.step
    assert record.changes == [{"from_step": step, "patience": [2, 0]}, {"from_step": step, **changed}]
    for name in ("n_layer", "seed", "batch_size", "ngram_folds"):
        with pytest.raises(UserError, match=f"`{name}` is fixed once a run has begun"):
            resume(ended, **{name: 3})


def test_a_fine_tune_may_change_the_dropouts(english: str, tmp_path: Path, text_file: Path) -> None:
    base = open_run(text_file, tmp_path / "base", replace(CONFIG, max_steps=5, patience=0))
    list(base.steps())
    text = corpus.load(str(text_file))
    recipe = choose_recipe("cpu", "nano", base.run, None, {"dropout": 0.5, "max_steps": 3})
    tuned = recipe.session(RunDir(tmp_path / "tuned"), text, CPU)
    assert (tuned.model.blocks[0].dropout, tuned.record.model.dropout) == (0.5, 0.5)
    assert tuned.record.model.attention_dropout == 0.2
    with pytest.raises(UserError, match="`n_layer` is the checkpoint's"):
        choose_recipe("cpu", "nano", base.run, None, {"n_layer": 2}).session(RunDir(tmp_path / "x"), text, CPU)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_steps_follow_the_text(name: str, stage: str) -> None:
    preset = PRESETS[name]
    tuned: TrainConfig = getattr(preset, stage)
    per_step = tuned.batch_size * preset.model.block_size
    assert steps_for(tuned, per_step, 1_003_854) == tuned.max_steps, "Tiny Shakespeare takes the preset itself"
    assert steps_for(tuned, per_step, 100_000_000) == tuned.max_steps
    assert steps_for(tuned, per_step, 10) == 1
    few = steps_for(tuned, per_step, 30_000)
    assert few * per_step / 30_000 <= max(7, tuned.max_steps * per_step / 1_003_854 + 1), "passes over the text"


def session_values(text: Path, folder: Path, values: dict[str, float], preset: str = "nano") -> TrainConfig:
    shape = {"n_layer": 1, "n_embd": 32, "n_head": 2, "ngram_order": 0}
    recipe = choose_recipe("cpu", preset, None, None, {**shape, **values})
    return recipe.session(RunDir(folder), corpus.load(str(text)), CPU).record.training


def test_a_short_text_takes_fewer_steps_and_says_so(
    text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "charformer")
    rule = session_values(text_file, tmp_path, {})
    assert (rule.max_steps, rule.eval_interval, rule.patience) == (105, 21, 2)  # 6 passes over 36,000 characters
    assert "the preset's 450 steps would pass over the 36,000 characters" in caplog.text
    assert "26 times; taking 105" in caplog.text
    caplog.clear()
    obeyed = session_values(text_file, tmp_path, {"max_steps": 450, "eval_interval": 7})
    assert (obeyed.max_steps, obeyed.eval_interval, obeyed.patience) == (450, 7, 0)
    assert "about 105 suit this text" in caplog.text
    caplog.clear()
    patient = session_values(text_file, tmp_path, {"max_steps": 120, "patience": 4, "eval_interval": 9})
    assert (patient.max_steps, patient.patience) == (120, 4)
    assert session_values(text_file, tmp_path, {"eval_interval": 9}).eval_interval == 9
    yardstick = session_values(text_file, tmp_path, {"block_size": 64}, "baseline")
    assert (yardstick.max_steps, yardstick.patience) == (5000, 0)
    assert session_values(text_file, tmp_path, {"max_steps": 200}).max_steps == 200
    assert "suit this text" not in caplog.text, "11 passes are not far from six"
    for wrong in ({"block_size": 0}, {"block_size": 30_000}):
        with pytest.raises(UserError, match="block_size"):
            session_values(text_file, tmp_path, wrong)


def test_progress_reports_the_last_step(text_file: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=6, eval_interval=3, patience=0)
    steps: list[Progress] = list(open_run(text_file, tmp_path / "run", config).steps())
    assert {step.last_step for step in steps} == {6}


def test_a_text_of_thousands_of_characters_gets_no_prior_unless_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "charformer")
    shape = {"n_layer": 1, "n_embd": 32, "n_head": 2, "block_size": 16}
    orders = {}
    for distinct in (4096, 4097):
        characters = "".join(chr(0x4E00 + number) for number in range(distinct))
        path = tmp_path / f"{distinct}.txt"
        path.write_text(characters + characters[:600] * 3, encoding="utf-8")
        text = corpus.load(str(path))
        for values in ({}, {"ngram_order": 2}):
            recipe = choose_recipe("cpu", "nano", None, None, {**shape, **values})
            model = recipe.session(RunDir(tmp_path / "run"), text, CPU).model
            orders[distinct, *values.values()] = model.config.ngram_order
    assert orders == {(4096,): 7, (4096, 2): 2, (4097,): 0, (4097, 2): 2}
    assert caplog.text.count("the text has 4,097 distinct characters, so the model gets no n-gram prior") == 1

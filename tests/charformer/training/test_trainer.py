import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charformer.data import corpus
from charformer.errors import UserError
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.training.session import Place, prepare_pretrain
from tests.charformer.training.trainings import (
    CPU,
    MODEL,
    TRAIN_CONFIG,
    assert_same,
    finetune,
    pretrain,
    run_all,
    weights,
)


def test_a_run_learns_and_records_it(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    steps = run_all(trainer)
    assert [step.step for step in steps] == list(range(13))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    assert [row["characters"] for row in rows] == [0, 640, 1280, 1920]
    assert set(rows[0]) == {
        "step", "characters", "seconds", "train_loss", "val_loss", "learning_rate", "chars_per_second",
    }  # fmt: skip
    assert rows[0]["val_loss"] > 4
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.5
    assert rows[-1]["seconds"] == pytest.approx(trainer.counters.train_seconds)
    assert trainer.counters.best_step == min(rows, key=lambda row: row["val_loss"])["step"]


def test_evaluation_is_timed_apart_from_training(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    monkeypatch.setattr(trainer, "subset_loss", lambda split: time.sleep(0.3) or 3.0)
    began = time.perf_counter()
    run_all(trainer)
    wall = time.perf_counter() - began
    counters = trainer.counters
    assert counters.eval_seconds >= 4 * 2 * 0.3
    assert 0 < counters.train_seconds <= wall - counters.eval_seconds
    steps = [row["characters"] / 640 for row in trainer.history]
    assert steps == [0, 1, 2, 3]
    assert sum(640 / row["chars_per_second"] for row in trainer.history[1:]) == pytest.approx(counters.train_seconds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    dtype: torch.dtype, text_file: Path, tmp_path: Path
) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = pretrain(text_file, tmp_path / name, replace(TRAIN_CONFIG, seed=seed), dtype)
        run_all(trainer)
        runs.append(weights(trainer))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["head.weight"], runs[2]["head.weight"])


def test_an_anomaly_is_traced_to_its_operation(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    steps = trainer.steps()
    next(steps)
    trainer.model.blocks[1].mlp.proj.weight.data[0, 0] = float("nan")
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.warns(UserWarning, match="Error detected in"),
        pytest.raises(UserError, match=r"step 1: Function '\w+' returned nan values .* `learning_rate`"),
    ):
        next(steps)


def test_the_best_weights_on_validation_are_kept(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    losses = iter([9.0, 4.0, 8.0, 2.0, 7.0, 3.0, 1.0, 3.5])  # of the training and the validation split in turn
    monkeypatch.setattr(trainer, "subset_loss", lambda split: next(losses))
    kept = {}
    for progress in trainer.steps():
        if progress.step == 4:
            kept = weights(trainer)
    assert (trainer.counters.best_step, trainer.counters.best_val_loss) == (4, 2.0)
    assert_same(dict(load_model(trainer.run)[0].state_dict()), kept)
    assert not torch.equal(trainer.model.head.weight, kept["head.weight"])
    trainer.whole_validation_loss()
    assert_same(weights(trainer), kept)


@pytest.mark.parametrize(
    ("change", "most"), [({"warmup_steps": 1000}, 3e-6), ({"grad_clip": 1e-12}, 1e-6), ({"learning_rate": 1e-5}, 1e-5)]
)
def test_the_schedule_and_the_clip_reach_the_weights(
    change: dict[str, float], most: float, text_file: Path, tmp_path: Path
) -> None:
    trainer = pretrain(text_file, tmp_path / "run", replace(TRAIN_CONFIG, **change))
    before = weights(trainer)
    steps = trainer.steps()
    assert [next(steps).step for _ in range(2)] == [0, 1]
    moved = max((after - before[name]).abs().max().item() for name, after in weights(trainer).items())
    assert 0 < moved <= most * 1.1


@pytest.mark.parametrize(("what", "dropout"), [("none", True), ("attention", True), ("trunk", False)])
def test_dropout_acts_while_blocks_train(
    what: str, dropout: bool, trained_run: Path, text_file: Path, tmp_path: Path
) -> None:
    trainer = finetune(trained_run, text_file, tmp_path / "fine", what)
    assert {progress.step: trainer.model.training for progress in trainer.steps()}[5] == dropout


def test_bfloat16_is_another_arithmetic_and_the_score_is_float32(text_file: Path, tmp_path: Path) -> None:
    exact = pretrain(text_file, tmp_path / "exact", TRAIN_CONFIG, torch.float32)
    run_all(exact)
    rough = pretrain(text_file, tmp_path / "rough", TRAIN_CONFIG, torch.bfloat16)  # seeds the dropout again
    run_all(rough)
    assert not torch.equal(exact.model.head.weight, rough.model.head.weight)
    score = rough.whole_validation_loss()
    rough.dtype = torch.float32
    assert rough.whole_validation_loss() == score


@pytest.mark.parametrize("what", ["attention", "trunk"])
def test_frozen_weights_stay_bit_identical_and_the_rest_trains(what: str, trained_run: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.txt"
    new.write_text("Ça alors! Ω ≠ ω, dit-il.\n" * 80, encoding="utf-8")
    trainer = finetune(trained_run, new, tmp_path / "fine", what)
    before, old_size = weights(trainer), len(load_model(RunDir(trained_run))[1])
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    if what == "trunk":
        assert trainable == {"head.weight", "head.bias", "ln_f.weight", "ln_f.bias"}
    else:
        assert trainable == {name for name in before if ".attn." not in name}
    assert len(before["head.bias"]) > old_size
    run_all(trainer)
    after = weights(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], after[name]) != parameter.requires_grad, name
        if not parameter.requires_grad:
            assert parameter.grad is None
            assert parameter not in trainer.optimizer.adamw.state
    assert not torch.equal(before["head.weight"][old_size:], after["head.weight"][old_size:])
    if what == "attention":
        assert not torch.equal(before["tok_emb.weight"][old_size:], after["tok_emb.weight"][old_size:])


def test_a_fine_tune_starts_from_the_checkpoint(trained_run: Path, text_file: Path, tmp_path: Path) -> None:
    source = load_model(RunDir(trained_run))[0]
    trainer = finetune(trained_run, text_file, tmp_path / "fine", "none")
    assert_same(dict(source.state_dict()), weights(trainer))


def test_the_whole_validation_loss_is_the_mean_over_every_character(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    run_all(trainer)
    whole = trainer.whole_validation_loss()
    model, vocab = load_model(trainer.run)
    model.double().eval()
    ids = torch.from_numpy(trainer.corpus.table(vocab)[trainer.corpus.validation])
    losses = []
    for start in range(0, len(ids) - 1, MODEL.block_size):
        window = ids[start : start + MODEL.block_size + 1]
        log_probabilities = model(window[None, :-1])[0].log_softmax(-1)
        losses += [-log_probabilities[t, target].item() for t, target in enumerate(window[1:])]
    assert len(losses) == len(ids) - 1
    assert len(losses) % MODEL.block_size, "the last window must be a short one for this test to mean anything"
    assert whole == pytest.approx(np.mean(losses), abs=1e-5)
    assert trainer.whole_validation_loss() == whole


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_one(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    steps = trainer.steps()
    assert [next(steps).step for _ in range(7)][-1] == 6
    trainer.model.head.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"nan at step 8; try a lower `learning_rate`"):
        list(steps)
    model, _ = load_model(trainer.run)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_pass_goes_once_over_the_training_split_and_no_other(tmp_path: Path) -> None:
    data = tmp_path / "each-character-once.txt"
    data.write_text("".join(chr(0x4E00 + place) for place in range(230)), encoding="utf-8")
    trainer = pretrain(data, tmp_path / "run", replace(TRAIN_CONFIG, batch_size=9))
    assert len(trainer.corpus.train) == 207
    cuts = set()
    for step in range(400):  # a batch is a pass: nine windows of twenty
        trainer.counters.step = step
        (windows,) = trainer.next_batch()
        assert torch.equal(windows, windows[:, :1] + torch.arange(MODEL.block_size + 1))
        text = windows[:, :-1].flatten().sort().values
        assert torch.equal(text, text[0] + torch.arange(180))
        cuts.add(int(text[0]))
    first = min(cuts)
    assert cuts == set(range(first, first + 27))  # 180 of 207 characters, the last of them a target


def test_samples_between_steps_change_nothing_and_take_no_time_from_the_training(
    text_file: Path, tmp_path: Path
) -> None:
    plain = pretrain(text_file, tmp_path / "plain")
    expected = [float(step.loss) for step in plain.steps()]
    text = corpus.load(str(text_file))
    session = prepare_pretrain(RunDir(tmp_path / "run"), MODEL, TRAIN_CONFIG, "nano", text, Place(CPU))
    session.open()
    losses, paused = [], 0.0
    began = time.perf_counter()
    for step in session.trainer.steps():
        losses.append(float(step.loss))
        pause = time.perf_counter()
        assert len(session.sample_between_steps(30)) == 31
        with session.trainer.paused():
            time.sleep(0.05)
        paused += time.perf_counter() - pause
    seconds = time.perf_counter() - began
    assert losses == expected, "dropout draws the same masks"
    assert_same(weights(session.trainer), weights(plain))
    assert session.trainer.model.training
    assert session.trainer.counters.train_seconds <= seconds - paused


def test_pauses_do_not_put_off_a_save(text_file: Path, tmp_path: Path) -> None:
    config = replace(TRAIN_CONFIG, max_steps=30, eval_interval=30, save_minutes=0.2 / 60)
    trainer = pretrain(text_file, tmp_path / "run", config)
    writes = set()
    for _ in trainer.steps():
        with trainer.paused():
            time.sleep(0.03)
        writes.add(trainer.run.state.stat().st_mtime_ns)
    assert len(writes) >= 4, "the first and the last evaluation, and every 0.2 of some 0.9 seconds"

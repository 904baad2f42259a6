from dataclasses import replace
from pathlib import Path

import pytest
import torch

from charformer.data import corpus
from charformer.errors import UserError
from charformer.runs.checkpoint import save_weights
from charformer.runs.folder import RunDir
from charformer.training.distributed import ProcessLostError, World
from charformer.training.session import Place, prepare_pretrain
from tests.charformer.training.trainings import (
    CPU,
    MODEL,
    TRAIN_CONFIG,
    assert_same,
    finetune,
    opened,
    pretrain,
    resumed,
    run_all,
    weights,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop_after", [2, 4])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    stop_after: int, dtype: torch.dtype, text_file: Path, tmp_path: Path
) -> None:
    whole = pretrain(text_file, tmp_path / "whole", dtype=dtype)
    run_all(whole)
    half = pretrain(text_file, tmp_path / "half", dtype=dtype)
    for _ in half.steps(stopped=lambda: half.counters.step >= stop_after):
        pass
    assert half.counters.step == stop_after
    torch.manual_seed(99)  # a new process would be in another random state
    run = RunDir(tmp_path / "half")
    again = resumed(whole, run)
    assert again.counters.step == stop_after
    run_all(again)
    assert_same(weights(whole), weights(again))
    timed = ("seconds", "chars_per_second")
    untimed = [[{k: v for k, v in row.items() if k not in timed} for row in t.history] for t in (whole, again)]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("often", [{"save_interval": 3}, {"save_minutes": 1e-9}], ids=str)
def test_saves_between_evaluations_change_only_where_a_killed_run_continues(
    often: dict[str, float], text_file: Path, tmp_path: Path
) -> None:
    train_config = replace(TRAIN_CONFIG, eval_interval=10)
    whole = pretrain(text_file, tmp_path / "whole", train_config)
    run_all(whole)
    killed = pretrain(text_file, tmp_path / "killed", replace(train_config, **often))
    steps = killed.steps()
    assert [next(steps).step for _ in range(9)][-1] == 8
    run = RunDir(tmp_path / "killed")
    again = resumed(whole, run)
    assert again.counters.step == (6 if "save_interval" in often else 8)
    assert 0 < again.counters.train_seconds < killed.counters.train_seconds + 1e-9
    run_all(again)
    assert_same(weights(whole), weights(again))
    assert [row["step"] for row in again.history] == [0, 10, 12]
    assert again.counters.train_seconds == pytest.approx(again.history[-1]["seconds"])


@pytest.mark.parametrize("way", ["between", "stopped"])
def test_a_step_that_diverges_is_not_saved_over_the_last_good_one(way: str, text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run", replace(TRAIN_CONFIG, save_interval=1 if way == "between" else 0))
    steps = trainer.steps(lambda: way == "stopped" and trainer.counters.step == 6)
    assert [next(steps).step for _ in range(6)][-1] == 5
    good = trainer.run.state.read_bytes()
    update = trainer.update

    def diverging() -> None:
        update()
        trainer.model.head.weight.data.mul_(float("inf"))

    trainer.update = diverging  # type: ignore[method-assign]
    with pytest.raises(UserError, match="at step 6; try a lower"):
        list(steps)
    assert trainer.run.state.read_bytes() == good


@pytest.mark.parametrize("what", ["none", "attention", "trunk"])
def test_a_stopped_fine_tune_continues_with_the_same_freeze(
    what: str, trained_run: Path, text_file: Path, tmp_path: Path
) -> None:
    whole = finetune(trained_run, text_file, tmp_path / "whole", what)
    run_all(whole)
    half = finetune(trained_run, text_file, tmp_path / "half", what)
    for _ in half.steps(stopped=lambda: half.counters.step >= 6):
        pass
    again = resumed(half)
    run_all(again)
    assert_same(weights(whole), weights(again))


def test_a_run_can_be_resumed_from_its_very_start(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    assert next(trainer.steps()).step == 0
    assert trainer.run.state.is_file()


def test_what_was_written_after_the_last_save_is_dropped(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    run_all(trainer)
    rows = trainer.run.read_metrics()
    trainer.run.write_metrics([*rows, rows[-1] | {"step": 16}])
    better = trainer.counters.best_val_loss - 0.5
    save_weights(trainer.run, trainer.model.state_dict(), 16, better)  # a kill came before the state could be saved
    again = resumed(trainer)
    assert again.run.read_metrics() == rows
    assert (again.counters.best_step, again.counters.best_val_loss) == (16, better)


def test_changed_settings_are_recorded(text_file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    trainer = pretrain(text_file, run.path)
    for stop_after, changes in (
        (4, {}),
        (6, {"max_steps": 20}),
        (8, {}),
        (10, {"learning_rate": 1e-4, "max_steps": 10}),
    ):
        if stop_after > 4:
            trainer = resumed(trainer, **changes)
        for _ in trainer.steps(
            stopped=lambda trainer=trainer, stop_after=stop_after: trainer.counters.step >= stop_after
        ):
            pass
    assert run.read_config()["changes"] == [
        {"from_step": 4, "max_steps": [TRAIN_CONFIG.max_steps, 20]},
        {"from_step": 8, "learning_rate": [TRAIN_CONFIG.learning_rate, 1e-4], "max_steps": [20, 10]},
    ]
    assert run.read_section("training")["max_steps"] == 10


def test_a_run_past_its_last_step_is_not_resumed(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    run_all(trainer)
    before = {path.name: path.read_bytes() for path in trainer.run.path.iterdir()}
    with pytest.raises(UserError, match="at step 12 already"):
        resumed(trainer, max_steps=5)
    assert {path.name: path.read_bytes() for path in trainer.run.path.iterdir()} == before


def test_a_new_plan_is_in_both_files(text_file: Path, tmp_path: Path) -> None:
    trainer = pretrain(text_file, tmp_path / "run")
    run_all(trainer)
    assert run_all(resumed(trainer, max_steps=12, patience=3)) == []
    assert trainer.run.read_section("training")["patience"] == 3
    again = resumed(trainer)
    assert again.counters.patient_from == 12


def test_a_lost_process_does_not_undo_the_step_that_it_is_noticed_in(text_file: Path, tmp_path: Path) -> None:
    class Losing(World):
        def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
            if trainer.counters.step == at:
                raise ProcessLostError
            return value

    text = corpus.load(str(text_file))
    for at, kept in ((1, 1), (5, 5), (4, 0), (12, 8)):  # an evaluation that a lost process prevents is made later
        run = RunDir(tmp_path / f"{at}")
        trainer = opened(prepare_pretrain(run, MODEL, TRAIN_CONFIG, "nano", text, Place(CPU, world=Losing())))
        with pytest.raises(ProcessLostError):
            run_all(trainer)
        again = resumed(trainer)
        assert again.counters.step == kept
        if kept:
            assert again.optimizer.adamw.state_dict()["state"][0]["step"] == kept
        run_all(again)
        assert [row["step"] for row in run.read_metrics()] == [0, 4, 8, 12]

"""Measure how many characters and seconds a preset needs to reach a validation loss, over several seeds.

    python -m bench.convergence --preset nano --target 1.7     three seeds of the preset's own training
    python -m bench.convergence --preset nano baseline         several presets, each to the baseline's loss

Each seed is a run of its own, as charformer-train would make it. It ends when its weights reach the target on the whole
validation split, or with the preset's last step. The evaluations in between are estimates on a fixed subset. A bench
that was stopped continues where it was when the same command is given again.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench import report
from bench.engines import baseline, nanogpt_recipe, train_nanogpt
from bench.harness import results
from bench.harness.charts import write_curves
from bench.harness.program import BenchParser, corpus_config, execute, keep, load_text, show, table
from charformer.data.corpus import Corpus
from charformer.device import choose_device, choose_dtype, describe, keep_freed_memory, memory_bytes
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Evaluation
from charformer.runs.record import RunRecord
from charformer.training.session import Place, TrainingSession, prepare_pretrain, prepare_resume
from charformer.training.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("convergence", __doc__)
    parser.add_presets("nano")
    parser.add_argument(
        "--target", type=float, default=baseline.ITS_LOSS, metavar="X", help="loss to stop at (default: %(default)s)"
    )
    parser.add_count("--seeds", 3, "seeds of each preset")
    parser.add_count("--steps", None, "steps of a run at most")
    parser.add_count("--eval-interval", None, "steps between evaluations")
    parser.add_data()
    parser.add_device()
    parser.add_dtype()
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/convergence"),
        metavar="DIR",
        help="the runs' folder (default: %(default)s)",
    )
    parser.add_argument(
        "--nanogpt",
        type=Path,
        metavar="DIR",
        help="also run the CPU recipe of this nanoGPT checkout: once as published, and once for as long as ours takes",
    )
    parser.add_chart("a chart of the curves")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    notices = Console(stderr=True)
    if args.nanogpt is not None:
        train_nanogpt.require(args.nanogpt)
        if device.type != "cpu" or len(args.preset) > 1:
            raise UserError("--nanogpt compares one --preset on a CPU; name one preset and add --device cpu")
    corpus = load_text(args.data, notices)
    config = _config(args, corpus)
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, console=notices) as progress:
        for preset in args.preset:
            for number in range(args.seeds):
                trainer = _open(args, preset, number, corpus, Place(device, dtype)).trainer
                task = progress.add_task(
                    f"{preset}, seed {trainer.config.seed}", total=trainer.config.max_steps, loss=""
                )

                def count(step: int, evaluation: Evaluation | None, task: Any = task) -> None:
                    progress.update(task, completed=step)
                    if evaluation is not None:
                        progress.update(task, loss=f"{evaluation.val_loss:.3f}")

                reached = train_to(trainer, args.target, count)
                rows.append(_row(trainer, args.target, reached))
                keep(args, config, rows)  # after each run, so that an interrupted bench keeps those that are done
        ours = median(row["curve"][-1]["seconds"] for row in rows)
        for seconds in (None, ours) if args.nanogpt is not None else ():
            task = progress.add_task("nanogpt", total=nanogpt_recipe.STEPS, loss="")

            def count_steps(step: int, steps: int, task: Any = task) -> None:
                progress.update(task, completed=step, total=steps)

            trained = nanogpt_recipe.train(corpus, args.nanogpt, seconds, count_steps)
            rows.append(_peer_row(trained, seconds))
            keep(args, config, rows)
    _print(rows, args.target)
    if args.chart:
        write_curves(args.chart, report.curves({"config": config, "rows": rows}), args.target)
    return 0


def train_to(
    trainer: Trainer, target: float, on_step: Callable[[int, Evaluation | None], None] = lambda *_: None
) -> dict[str, Any] | None:
    """Train until the whole validation split's loss is at most ``target``, or to the last step.

    Returns:
        Step, characters, seconds of training and that loss, or None if it is never reached. The whole split is scored
        when an evaluation's estimate is the best so far and at most ``target``, and at the last step.
    """
    reached = _reached(trainer, target)
    while reached is None and not trainer.is_finished:
        here = trainer.counters.step
        for progress in trainer.steps(partial(_is_promising, trainer, target, here)):
            on_step(progress.step, progress.evaluation)
        reached = _reached(trainer, target)
    return reached


def _is_promising(trainer: Trainer, target: float, after: int = 0) -> bool:
    """Return whether the last step came later than ``after`` and gave the best estimate so far, at most ``target``."""
    counters = trainer.counters
    return counters.best_val_loss <= target and counters.best_step == counters.step > after


def _reached(trainer: Trainer, target: float) -> dict[str, Any] | None:
    at_its_end = trainer.is_finished and trainer.counters.best_step == trainer.counters.step
    if not (_is_promising(trainer, target) or at_its_end):  # an estimate can be a little too high
        return None
    loss = trainer.whole_validation_loss()  # of the best weights, which the model has at this point
    if loss > target:
        return None
    counters = trainer.counters
    return {
        "step": counters.step,
        "characters": counters.characters,
        "seconds": counters.train_seconds,
        "val_loss": loss,
    }


def _open(args: argparse.Namespace, preset: str, number: int, corpus: Corpus, place: Place) -> TrainingSession:
    """Return a session of the preset's pretraining with its seed + ``number``, at its start or where it was stopped.

    Raise UserError if the folder holds a run that was trained with other settings.
    """
    train_config = PRESETS[preset].pretrain
    changes = {"max_steps": args.steps, "eval_interval": args.eval_interval, "seed": train_config.seed + number}
    train_config = replace(train_config, **{name: value for name, value in changes.items() if value is not None})
    run = RunDir(args.runs / f"{preset}-{train_config.seed}")
    if not run.state.is_file():
        session = prepare_pretrain(run, PRESETS[preset].model, train_config, preset, corpus, place)
    else:
        record = RunRecord.read(run)
        asked = (preset, train_config, describe(place.device, place.dtype))
        if (record.preset, record.training, record.machine) != asked:
            raise UserError(f"the run in {run.path} was trained with other settings; choose another folder with --runs")
        session = prepare_resume(run, record, {}, corpus, place)
    session.open()
    return session


def _row(trainer: Trainer, target: float, reached: dict[str, Any] | None) -> dict[str, Any]:
    return results.training_row(
        trainer.run,
        peak_memory_bytes=memory_bytes(trainer.device),
        seed=trainer.config.seed,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        target=target,
        reached=reached,
        val_loss=reached["val_loss"] if reached else trainer.whole_validation_loss(),
    )


def _peer_row(trained: nanogpt_recipe.Trained, seconds: float | None) -> dict[str, Any]:
    return results.row(
        engine="nanogpt",
        preset="its recipe for a CPU" if seconds is None else "its recipe for a CPU, as long as ours",
        precision="float32",
        batch=nanogpt_recipe.BATCH_SIZE,
        context=nanogpt_recipe.SHAPE.block_size,
        threads=torch.get_num_threads(),
        freeze="none",
        chars_per_second=results.percentiles(trained.speeds),
        samples=len(trained.speeds),
        parameters=trained.parameters,
        reached=None,
        end=trained.end,
        val_loss=trained.end["val_loss"],
        curve=[trained.end],
    )


def _config(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    return {
        "presets": {
            name: {"model": PRESETS[name].model.to_dict(), "training": PRESETS[name].pretrain.to_dict()}
            for name in args.preset
        },
        "target": args.target,
        "seeds": args.seeds,
        "steps": args.steps,
        "eval_interval": args.eval_interval,
        "corpus": corpus_config(corpus),
    }


def _print(rows: list[dict[str, Any]], target: float) -> None:
    figures = ["characters", "seconds of training", "loss then, or of the best weights"]
    found = table(f"to a validation loss of {target:g}, whole split", ["preset", "seed"], figures)
    ours = [row for row in rows if row["engine"] == "charformer"]
    for row in ours:
        reached = row["reached"]
        there = (f"{reached['characters']:,}", f"{reached['seconds']:,.0f}") if reached else ("not reached", "")
        found.add_row(row["preset"], str(row["seed"]), *there, f"{row['val_loss']:.4f}")
    for row in rows[len(ours) :]:
        end = row["end"]
        at_its_end = (f"({end['characters']:,})", f"({end['seconds']:,.0f})")
        found.add_row(f"nanogpt, {row['preset']}", "", *at_its_end, f"{row['val_loss']:.4f}")
    for preset in dict.fromkeys(row["preset"] for row in ours):
        mine = [row["reached"] for row in ours if row["preset"] == preset]
        if len(mine) > 1 and None not in mine:
            characters, seconds = (median(reached[key] for reached in mine) for key in ("characters", "seconds"))
            found.add_section()
            found.add_row(preset, "median", f"{characters:,.0f}", f"{seconds:,.0f}", "")
    show(found)


if __name__ == "__main__":
    sys.exit(main())

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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.engines import baseline, nanogpt_recipe, train_nanogpt
from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.variants import with_changes
from charformer.data.corpus import Corpus
from charformer.device import choose_device, choose_dtype, describe, keep_freed_memory, memory_bytes
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.training.session import Place, TrainingSession, prepare_pretrain, prepare_resume
from charformer.training.trainer import Trainer
from charformer.ui.console import PlainConsole, progress_bar


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
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    if args.nanogpt is not None:
        train_nanogpt.require(args.nanogpt)
        if device.type != "cpu" or len(args.preset) > 1:
            raise UserError("--nanogpt compares one --preset on a CPU; name one preset and add --device cpu")
    corpus = load_text(args.data)
    presets = ((name, PRESETS[name].model.to_dict(), PRESETS[name].pretrain.to_dict()) for name in args.preset)
    config = {name: getattr(args, name) for name in ("target", "seeds", "steps", "eval_interval")}
    config |= {"presets": {name: {"model": model, "training": training} for name, model, training in presets}}
    config |= {"corpus": text_config(corpus.summary())}
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for preset in args.preset:
            for number in range(args.seeds):
                trainer = _open(args, preset, number, corpus, Place(device, dtype)).trainer
                reached = train_to(trainer, args.target, partial(on_progress, f"{preset}, seed {trainer.config.seed}"))
                rows.append(_row(trainer, args.target, reached))
                keep(args, config, rows)  # after each run, so that an interrupted bench keeps those that are done
        ours = median(row["curve"][-1]["seconds"] for row in rows)
        for seconds in (None, ours) if args.nanogpt is not None else ():
            rows.append(nanogpt_recipe.train(corpus, args.nanogpt, seconds, partial(on_progress, "nanogpt")))
            keep(args, config, rows)
    _print(rows, args.target)
    return 0


def train_to(
    trainer: Trainer, target: float, on_progress: Callable[[int, int], None] = lambda *_: None
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
            on_progress(progress.step, trainer.config.max_steps)
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
    found = {"step": counters.step, "characters": counters.characters, "seconds": counters.train_seconds}
    return found | {"val_loss": loss}


def _open(args: argparse.Namespace, preset: str, number: int, corpus: Corpus, place: Place) -> TrainingSession:
    """Return a session of the preset's pretraining with its seed + ``number``, at its start or where it was stopped.

    Raise UserError if the folder holds a run that was trained with other settings.
    """
    seed = PRESETS[preset].pretrain.seed + number
    changes = {"max_steps": args.steps, "eval_interval": args.eval_interval, "seed": seed}
    train_config = with_changes(PRESETS[preset], changes).pretrain
    run = RunDir(args.runs / f"{preset}-{seed}")
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


def _print(rows: list[dict[str, Any]], target: float) -> None:
    shown = []
    for row in rows:
        end = row["reached"] or row.get("end") or {}
        name = row["preset"] if row["engine"] == "charformer" else f"{row['engine']}, {row['preset']}"
        shown.append(row | end | {"preset": name, "is_there": "reached" if row["reached"] else "not reached"})
    columns = {"preset": "{preset}", "seed": "{seed:}", f"{target:g}": "{is_there}", "characters": "{characters:,}"}
    columns |= {"seconds of training": "{seconds:,.0f}", "loss then, or of the best weights": "{val_loss:.4f}"}
    print_table(f"to a validation loss of {target:g}, whole split", shown, columns)


if __name__ == "__main__":
    sys.exit(main())

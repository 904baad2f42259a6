"""Measure what a training spends outside its steps: on batches, evaluations, saves, the display, start and end.

    python -m bench.overhead --preset nano fast --json bench/results/overhead.json

Each preset pretrains, and is fine-tuned with each --freeze, by `charformer-train` with its live panel, in this process
and on the CPU, where every call has finished its work when it returns.
"""

import argparse
import os
import tempfile
from contextlib import AbstractContextManager, ExitStack, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from bench.harness.program import BenchParser, execute, keep, print_table
from bench.harness.runs import training_row
from bench.harness.stopwatch import Stopwatch
from charformer.commands import train
from charformer.data import corpus
from charformer.errors import UserError
from charformer.model.freeze import FREEZES
from charformer.runs.folder import RunDir
from charformer.training.session import TrainingSession
from charformer.training.trainer import PhaseName, Trainer
from charformer.ui.training_display import TrainingDisplay

TRAINING_PARTS = ("steps", "data", "evaluation", "display", "saves", "score and sample", "rest")
TRAINING_FREEZES = [freeze for freeze in FREEZES if freeze != "all"]  # "all" takes no step
PHASES = {"data": "data", "evaluation": "evaluation", "save": "saves"}  # of the trainer; all others are part of a step
OUTSIDE = ("data", "evaluation", "display")  # the parts whose share of the training is reported
# These make rich show a panel without a terminal.
TERMINAL = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("overhead", __doc__)
    parser.add_presets("nano")
    parser.add_data("--pretrain-data", "tiny-shakespeare")
    parser.add_data("--finetune-data", "ace-attorney")
    parser.add_count("--steps", None, "steps of every training")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    for data in (args.pretrain_data, args.finetune_data):
        corpus.load(data)  # encode it now; only the first training on a text has to
    steps = ["--steps", str(args.steps)] if args.steps else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in dict.fromkeys(args.preset):
            source = Path(folder) / preset
            rows.append(_measure(source, ["--preset", preset, "--data", args.pretrain_data, *steps]))
            for freeze in TRAINING_FREEZES:
                flags = ["--stage", "finetune", "--init-from", str(source), "--data", args.finetune_data, *steps]
                flags += ["--freeze", freeze] if freeze != "none" else []
                rows.append(_measure(source.with_name(f"{preset}-{freeze}"), flags))
    columns = {name: f"{{{name}}}" for name in ("preset", "stage", "freeze")}
    columns |= {part: f"{{seconds[{part}]:.2f}}" for part in TRAINING_PARTS}
    print_table("seconds", rows, columns | {f"{', '.join(OUTSIDE)} of the training": "{share:.1%}"})
    config = {name: Path(getattr(args, name)).name for name in ("pretrain_data", "finetune_data")}
    keep(args, config | {"steps": args.steps}, rows)
    return 0


def _measure(folder: Path, flags: list[str]) -> dict[str, Any]:
    """Train, and return the row. Raise UserError when the training fails, which has then printed the reason."""
    watch = Stopwatch()

    def phase(name: PhaseName) -> AbstractContextManager[None]:
        return watch.part(PHASES.get(name, "steps"))

    with ExitStack() as within:
        within.enter_context(patch.dict(os.environ, TERMINAL))
        for owner, method, part in (
            (TrainingDisplay, "update", "display"),
            (TrainingSession, "finish", "score and sample"),
        ):
            within.enter_context(patch.object(owner, method, watch.part(part)(getattr(owner, method))))
        within.enter_context(patch.object(Trainer, "phase", staticmethod(phase)))
        if not Console().is_interactive:
            raise UserError("the live panel does not appear; install rich 14 or newer")
        within.enter_context(redirect_stdout(within.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        within.enter_context(watch.part("rest"))
        code = train.main([*flags, "--device", "cpu", "--out", str(folder)])
    if code:
        raise UserError(f"the training in {folder} ended with {code}")
    seconds = {part: watch.seconds[part] for part in TRAINING_PARTS}
    outside = sum(seconds[part] for part in OUTSIDE)
    share = outside / (outside + seconds["steps"] + seconds["saves"])
    return training_row(RunDir(folder), seconds=seconds, share=share)


if __name__ == "__main__":
    raise SystemExit(main())

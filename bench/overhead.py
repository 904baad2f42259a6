"""Measure what a training spends outside its steps: on batches, evaluations, saves, the display, start and end.

    python -m bench.overhead --preset nano fast --json bench/results/overhead.json

Each preset pretrains, and is fine-tuned with each --freeze, by `charformer-train` with its live panel, in this process
and on the CPU, where every call has finished its work when it returns.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, show, table
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in dict.fromkeys(args.preset):
            source = Path(folder) / preset
            flags = ["--preset", preset, "--device", "cpu", "--out", str(source), "--data", args.pretrain_data]
            rows.append(_measure(RunDir(source), [*flags, *_steps(args)]))
            for freeze in TRAINING_FREEZES:
                run = RunDir(source.with_name(f"{preset}-{freeze}"))
                flags = ["--stage", "finetune", "--device", "cpu", "--init-from", str(source), "--out", str(run.path)]
                flags += ["--freeze", freeze] if freeze != "none" else []
                rows.append(_measure(run, [*flags, "--data", args.finetune_data, *_steps(args)]))
    found = table("seconds", ["preset", "stage", "freeze"], [*TRAINING_PARTS, f"{', '.join(OUTSIDE)} of the training"])
    for row in rows:
        seconds = (f"{row['seconds'][part]:.2f}" for part in TRAINING_PARTS)
        found.add_row(row["preset"], row["stage"], row["freeze"], *seconds, f"{100 * row['share']:.1f} %")
    show(found)
    config = {name: Path(getattr(args, name)).name for name in ("pretrain_data", "finetune_data")}
    keep(args, config | {"steps": args.steps}, rows)
    return 0


def _steps(args: argparse.Namespace) -> list[str]:
    return ["--steps", str(args.steps)] if args.steps else []


def _measure(run: RunDir, flags: list[str]) -> dict[str, Any]:
    """Train, and return the row. Raise UserError when the training fails, which has then printed the reason."""
    began = time.perf_counter()
    with _timed() as spent, open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        code = train.main(flags)
    if code:
        raise UserError(f"the training in {run.path} ended with {code}")
    spent["rest"] = time.perf_counter() - began - sum(spent.values())
    training = sum(spent[part] for part in (*OUTSIDE, "steps", "saves"))
    return results.training_row(
        run,
        seconds={part: spent[part] for part in TRAINING_PARTS},
        share=sum(spent[part] for part in OUTSIDE) / training,
    )


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Add up the seconds of each part of a training within the context; a part excludes the parts that it calls."""
    places: list[tuple[Any, str, str]] = [
        (TrainingDisplay, "update", "display"),
        (TrainingSession, "finish", "score and sample"),
    ]
    spent: dict[str, float] = defaultdict(float)
    within: list[str] = []
    since = [0.0]

    def count() -> None:
        now = time.perf_counter()
        if within:
            spent[within[-1]] += now - since[0]
        since[0] = now

    @contextmanager
    def within_part(part: str) -> Iterator[None]:
        count()
        within.append(part)
        try:
            yield
        finally:
            count()
            within.pop()

    def timed(original: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with within_part(part):
                return original(*args, **options)

        return call

    def phase(name: PhaseName) -> AbstractContextManager[None]:
        return within_part(PHASES.get(name, "steps"))

    with ExitStack() as patched:
        # these make rich show a panel without a terminal
        patched.enter_context(patch.dict(os.environ, {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}))
        for owner, name, part in places:
            patched.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        patched.enter_context(patch.object(Trainer, "phase", staticmethod(phase)))
        if not Console().is_interactive:
            raise UserError("the live panel does not appear; install rich 14 or newer")
        yield spent


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure what --freeze saves and costs: one pretraining, then a full fine-tune and one with each --freeze.

    python -m bench.freeze --json bench/results/freeze.json

Each variant is a `charformer-train` of its own, and a bench that was stopped continues where it was.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.engines import baseline
from bench.harness.program import BenchParser, execute, keep, print_table
from bench.harness.runs import train
from charformer.data import corpus
from charformer.model.freeze import FREEZES
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("freeze", __doc__)
    parser.add_presets("baseline-as-coded", several=False)
    parser.add_data("--pretrain-data", "tiny-shakespeare")
    parser.add_data("--finetune-data", "ace-attorney")
    parser.add_count("--steps", 1000, "steps of pretraining")
    parser.add_count("--finetune-steps", 500, "steps of each fine-tune")
    parser.add_count("--eval-interval", 100, "steps between evaluations")
    parser.add_count("--seed", 1337, "seed of every training")
    parser.add_runs()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    for data in (args.pretrain_data, args.finetune_data):
        corpus.load(data)  # a mistake in the second is reported now, not after the first training
    rows = _train_all(args)
    _print(rows)
    asked = ("preset", "pretrain_data", "finetune_data", "steps", "finetune_steps", "eval_interval", "seed")
    config = {name: getattr(args, name) for name in asked}
    keep(args, config | {name: Path(config[name]).name for name in ("pretrain_data", "finetune_data")}, rows)
    return 0


def _train_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    pretrain = RunDir(args.runs / "pretrain")
    every = ["--eval-interval", str(args.eval_interval), "--seed", str(args.seed)]
    rows = [train(pretrain, args.preset, ["--data", args.pretrain_data, "--steps", str(args.steps), *every])]
    for freeze in FREEZES if PRESETS[args.preset].model.ngram_order else FREEZES[:-1]:  # the last counts and no more
        flags = ["--stage", "finetune", "--init-from", str(pretrain.path), "--data", args.finetune_data]
        flags += ["--steps", str(args.finetune_steps), *every, *(["--freeze", freeze] if freeze != "none" else [])]
        rows.append(train(RunDir(args.runs / freeze), args.preset, flags))
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    """Print the losses of every variant beside those published for the same step."""
    shown = []
    for row in rows:
        published = (
            baseline.PUBLISHED.get((row["stage"], row["freeze"]), {}) if row["preset"].startswith("baseline") else {}
        )
        steps = {*published, row["curve"][-1]["step"]}
        for point in (point for point in row["curve"] if point["step"] in steps):
            there = published.get(point["step"])
            shown.append(row | point | {"published": f"{there[0]} / {there[1]}" if there else ""})
    columns = {"stage": "{stage}", "freeze": "{freeze}", "step": "{step:}", "train": "{train_loss:.3f}"}
    columns |= {"val": "{val_loss:.3f}", "published": "{published:}", "chars/s": "{chars_per_second:,.0f}"}
    print_table("freeze", shown, columns)


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure what --freeze saves and costs: one pretraining, then a full fine-tune and one with each --freeze.

    python -m bench.freeze --json bench/results/freeze.json

Each variant is a `charformer-train` in a process of its own. Runs that already exist are resumed, so that a bench that
was stopped continues where it was.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.engines import baseline
from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, print_table, text_config
from charformer.data import corpus
from charformer.errors import UserError
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
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/freeze"), metavar="DIR", help="the runs' folder (default: %(default)s)"
    )
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    for data in (args.pretrain_data, args.finetune_data):
        corpus.load(data)  # a mistake in the second is reported now, not after the first training
    rows = _train_all(args)
    _print(rows)
    asked = ("preset", "pretrain_data", "finetune_data", "steps", "finetune_steps", "eval_interval")
    config = {name: getattr(args, name) for name in asked}
    keep(args, config | {name: Path(config[name]).name for name in ("pretrain_data", "finetune_data")}, rows)
    return 0


def _train_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    pretrain = RunDir(args.runs / "pretrain")
    rows = [_train(args, pretrain, args.pretrain_data, args.steps, [])]
    for freeze in FREEZES if PRESETS[args.preset].model.ngram_order else FREEZES[:-1]:  # the last counts and no more
        flags = ["--stage", "finetune", "--init-from", str(pretrain.path)]
        flags += ["--freeze", freeze] if freeze != "none" else []
        rows.append(_train(args, RunDir(args.runs / freeze), args.finetune_data, args.finetune_steps, flags))
    return rows


def _train(args: argparse.Namespace, run: RunDir, data: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """Train one variant, or finish its training, and return its row.

    Raise UserError if the folder holds a run that was trained with other settings.
    """
    began = run.state.is_file()
    command = ["charformer.commands.train", "--json", "--out", str(run.path), "--data", data]
    if began:
        config = run.read_config()
        training = config["training"]
        is_there = (config["preset"], config["corpus"]["name"], training["max_steps"], training["eval_interval"])
        if is_there != (args.preset, Path(data).name, steps, args.eval_interval):
            raise UserError(f"the run in {run.path} was trained with other settings; choose another folder with --runs")
        command.append("--resume")
    else:
        given = ["--preset", args.preset, "--steps", str(steps), "--eval-interval", str(args.eval_interval)]
        command += [*flags, *given, "--overwrite"]
    summary = results.run_process(command)
    summary["corpus"] = text_config(summary["corpus"])
    del summary["out"]
    return results.training_row(
        run,
        peak_memory_bytes=None if began else summary["peak_memory_bytes"],  # a resumed process saw only its own part
        learning_rate=run.read_section("training")["learning_rate"],
        summary=summary,
    )


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

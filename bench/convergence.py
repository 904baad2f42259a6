"""Measure how many characters and seconds a preset needs to reach a validation loss, over several seeds.

    python -m bench.convergence --preset nano --target 1.7     three seeds of the preset's own training
    python -m bench.convergence --preset nano baseline         several presets, each to the baseline's loss

Each seed is a `charformer-train` of its own, and a bench that was stopped continues where it was. The evaluations that
show when a loss is reached are estimates on a fixed subset; the loss at the end is that of the whole validation split.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.engines import baseline, nanogpt_recipe, train_nanogpt
from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.runs import reached, train
from charformer.device import choose_device, keep_freed_memory
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, progress_bar

GIVEN = ("data", "device", "dtype", "steps", "eval_interval")  # options that charformer-train has too


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("convergence", __doc__)
    parser.add_presets("nano")
    parser.add_argument(
        "--target", type=float, default=baseline.ITS_LOSS, metavar="X", help="loss to reach (default: %(default)s)"
    )
    parser.add_count("--seeds", 3, "seeds of each preset")
    parser.add_count("--steps", None, "steps of a run")
    parser.add_count("--eval-interval", None, "steps between evaluations")
    parser.add_data()
    parser.add_device()
    parser.add_dtype()
    parser.add_runs()
    parser.add_argument(
        "--nanogpt",
        type=Path,
        metavar="DIR",
        help="also run the CPU recipe of this nanoGPT checkout: once as published, and once for as long as ours takes",
    )
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if args.nanogpt is not None:
        train_nanogpt.require(args.nanogpt)
        if choose_device(args.device).type != "cpu" or len(args.preset) > 1:
            raise UserError("--nanogpt compares one --preset on a CPU; name one preset and add --device cpu")
    corpus = load_text(args.data)
    presets = ((name, PRESETS[name].model.to_dict(), PRESETS[name].pretrain.to_dict()) for name in args.preset)
    config = {name: getattr(args, name) for name in ("target", "seeds", "steps", "eval_interval")}
    config |= {"presets": {name: {"model": model, "training": training} for name, model, training in presets}}
    config |= {"corpus": text_config(corpus.summary())}
    given = {name: getattr(args, name) for name in GIVEN} | {"threads": torch.get_num_threads()}  # as nanoGPT has
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    rows: list[dict[str, Any]] = []
    for preset in args.preset:
        for seed in range(first := PRESETS[preset].pretrain.seed, first + args.seeds):
            row = train(RunDir(args.runs / f"{preset}-{seed}"), preset, [*flags, f"--seed={seed}"])
            rows.append(row | {"seed": seed, "val_loss": row["summary"]["val_loss"]})
            keep(args, config, rows)  # after each run, so that an interrupted bench keeps those that are done
    if args.nanogpt is not None:
        keep_freed_memory()  # as charformer-train does
        ours = median(row["curve"][-1]["seconds"] for row in rows)
        with progress_bar(PlainConsole(stderr=True)) as on_progress:
            for seconds in (None, ours):
                rows.append(nanogpt_recipe.train(corpus, args.nanogpt, seconds, partial(on_progress, "nanogpt")))
                keep(args, config, rows)
    _print(rows, args.target)
    return 0


def _print(rows: list[dict[str, Any]], target: float) -> None:
    shown = []
    for row in rows:
        name = row["preset"] if row["engine"] == "charformer" else f"{row['engine']}, {row['preset']}"
        shown.append(row | {"preset": name, "end": row["curve"][-1], "after": reached(row, target)})
    columns = {"preset": "{preset}", "seed": "{seed:}", f"estimated {target:g} after": "{after:}"}
    columns |= {"characters": "{end[characters]:,}", "seconds of training": "{end[seconds]:,.0f}"}
    print_table(f"to a validation loss of {target:g}", shown, columns | {"loss, whole split": "{val_loss:.4f}"})


if __name__ == "__main__":
    sys.exit(main())

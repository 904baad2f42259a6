"""Measure what each ingredient of a preset contributes, by repeating the pretraining without it.

    python -m bench.ablation --preset nano                   every ingredient of nano, some twenty minutes on two cores
    python -m bench.ablation --of prior --steps 150          each part of its n-gram prior, and other orders and folds
    python -m bench.ablation --of length --data short.txt novel.txt   steps and dropout on texts of several lengths

Every variant runs the preset's whole pretraining with the same seed and the same batches. Its loss is that of the best
weights over the whole validation split, with the prior's context cut at the start of each window; the table alone is
scored in the same way. Without --steps, a short text takes as many as in charformer-train. The sampling speed, which is
measured for ingredients, is that of the exported 8-bit model, with all variants taking turns.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.engines import baseline
from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.sampling import SamplingEntry, interleave_samplers
from bench.harness.variants import train_variant, with_changes
from charformer.device import keep_freed_memory
from charformer.errors import UserError
from charformer.presets import PRESETS, Preset
from charformer.training.recipe import steps_for
from charformer.training.trainer import Trainer
from charformer.ui.console import PlainConsole, progress_bar
from export.exporter import export

CHARACTERS = 200  # of each text that is sampled
EVALUATIONS = 5  # in a training


def _replaced(**methods: Callable[..., Tensor]) -> Callable[[Trainer], None]:
    """Return a function that replaces methods of a trainer's n-gram prior."""
    return lambda trainer: vars(trainer.model.ngram_prior).update(methods)


def _without_folds(trainer: Trainer) -> None:
    """Let a table that has counted a window predict it."""
    assert trainer.prior is not None
    tables = trainer.prior.tables
    trainer.prior.tables = replace(tables, folds=[tables.whole] * len(tables.folds))
    if trainer.device.type == "cuda":
        trainer.prior.keep()  # the rows there are those of the folds


NO_INPUT: dict[str, Callable[..., Tensor]] = {"embed": lambda prior: prior.new_zeros(1)}
NO_CORRECTION: dict[str, Callable[..., Tensor]] = {"correct": lambda logits, _h, _prior: logits}
NO_GATE: dict[str, Callable[..., Tensor]] = {"correct": lambda logits, _h, prior: logits + prior.log()}
# Each variant changes fields of the preset, or the trainer where no field does.
Change = dict[str, Any] | Callable[[Trainer], None]
VARIANTS: dict[str, dict[str, Change]] = {
    "ingredients": {
        "all": {},
        "learned positions": {"rope_base": 0.0},
        "plain ReLU": {"relu_power": 1},
        "AdamW alone": {"muon_learning_rate": 0.0},
        "PyTorch's start": {"zero_init": 0},
        "constant rate": {"decay_fraction": 0.0},
        "no weight decay": {"weight_decay": 0.0},
        "no prior": {"ngram_order": 0},
    },
    "prior": {
        "all": {},
        "no prior": {"ngram_order": 0},
        "no input": _replaced(**NO_INPUT),
        "no correction": _replaced(**NO_CORRECTION),
        "no gate": _replaced(**NO_GATE),
        "no input, no gate": _replaced(**NO_INPUT, **NO_GATE),
        "no folds": _without_folds,
        "4 folds": {"ngram_folds": 4},
        "16 folds": {"ngram_folds": 16},
        **{f"order {order}": {"ngram_order": order} for order in (3, 4, 5, 6, 7, 8)},
    },
    "length": {
        "charformer-train's steps": {},
        **{
            f"{steps} steps, dropout {rate:g}": {"max_steps": steps, "dropout": rate}
            for steps, rate in product((30, 60, 120, 240, 450), (0.0, 0.2))
        },
    },
}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("ablation", __doc__)
    parser.add_presets("nano", several=False)
    parser.add_argument("--of", choices=VARIANTS, default="ingredients", help="what to vary (default: ingredients)")
    parser.add_argument("--variant", nargs="+", metavar="NAME", help="only these variants (default: all)")
    parser.add_count("--steps", None, "steps of each run, unless a variant has its own; fewer on a short text")
    texts = "texts to train on, one by one (default: tiny-shakespeare)"
    parser.add_argument("--data", metavar="FILE|NAME", nargs="+", default=[None], help=texts)
    parser.add_device()
    parser.add_dtype()
    parser.add_count("--rounds", 7, "texts that are sampled from each variant")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    chosen = variants(preset, args.of, args.variant)
    corpora = [load_text(data) for data in args.data]
    keep_freed_memory()
    config = {"preset": args.preset, "model": preset.model.to_dict(), "training": preset.pretrain.to_dict()}
    config |= {"characters": CHARACTERS, "rounds": args.rounds}
    config["corpora"] = [text_config(corpus.summary()) for corpus in corpora]
    per_step = preset.pretrain.batch_size * preset.model.block_size
    rows: list[dict[str, Any]] = []
    entries = []
    with tempfile.TemporaryDirectory() as folder, progress_bar(PlainConsole(stderr=True)) as on_progress:
        for corpus, (name, change) in product(corpora, chosen.items()):
            changes, patch = ({}, change) if callable(change) else (change, lambda _: None)
            steps = changes.get("max_steps") or args.steps or steps_for(preset.pretrain, per_step, len(corpus.train))
            common = {"max_steps": steps, "eval_interval": max(1, round(steps / EVALUATIONS)), "patience": 0}
            changed = with_changes(preset, common | changes)
            run, row = train_variant(args, changed, name, corpus, Path(folder) / str(len(rows)), on_progress, patch)
            rows.append(row | {"text": corpus.name, "steps": steps, "changes": changes})
            keep(args, config, rows)
            if args.of == "ingredients":
                export(run, run.onnx, "int8", portable=False, corpus=corpus)
                options = {"path": str(run.onnx), "characters": CHARACTERS}
                entries.append(SamplingEntry("charformer-onnx", "int8", "bench.engines.sample_charformer", options))
        for row, entry in zip(rows, interleave_samplers(entries, args.rounds, on_progress), strict=False):
            found = entry.row("sampling", args.preset, preset.model.block_size)
            row["sampling"] = {key: found[key] for key in ("chars_per_second", "samples", "threads")}
    keep(args, config, rows)
    _print(args.of, rows)
    return 0


def variants(preset: Preset, of: str, names: list[str] | None = None) -> dict[str, Change]:
    """Return the variants of ``preset`` with these names, by default all that differ from it, after itself.

    Raise UserError if there are none.
    """
    values = preset.model.to_dict() | preset.pretrain.to_dict()
    if of == "prior" and not preset.model.ngram_order:
        raise UserError("this preset has no n-gram prior; choose another --preset")
    found = {
        name: change
        for name, change in VARIANTS[of].items()
        if of == "length"
        or not change
        or callable(change)
        or any(values.get(field, 0) != value for field, value in change.items())
    }
    if len(found) == 1:
        raise UserError("this preset has none of the ingredients; choose another --preset")
    if unknown := set(names or ()) - set(found):
        raise UserError(f"there is no variant {unknown.pop()!r}; the variants are {', '.join(map(repr, found))}")
    return {name: found[name] for name in names or found}


def _print(of: str, rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        first = next(other for other in rows if other["text"] == row["text"])
        there = next((point for point in row["curve"] if point["val_loss"] <= baseline.ITS_LOSS), None)
        at = f"{there['characters'] / 1e6:.2f} M, {there['seconds']:.0f} s" if there else "never"
        shown.append(row | {"change": row["val_loss"] - first["val_loss"], "there": at})
    columns = {
        "text": "{text}",
        "variant": "{variant}",
        "steps": "{steps:,}",
        "passes": "{passes:.1f}",
        "best step": "{best_step:,}",
        "validation loss": "{val_loss:.4f}",
        "change": "{change:+.4f}",
        f"{baseline.ITS_LOSS:g} after": "{there:}",
        "seconds": "{seconds:.0f}",
        "chars/s": "{chars_per_second[p50]:,.0f}",
        "int8 chars/s": "{sampling[chars_per_second][p50]:,.0f}",
        "table alone": "{table_loss:.4f}",
        "n-grams": "{ngrams:,}",
        "counting, s": "{counting_seconds:.1f}",
    }
    print_table(of, shown, columns)


if __name__ == "__main__":
    sys.exit(main())

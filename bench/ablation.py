"""Measure what each ingredient of a preset contributes, by repeating the pretraining without it.

    python -m bench.ablation --preset nano                   every ingredient of nano, some twenty minutes on two cores
    python -m bench.ablation --of prior --steps 150          each part of its n-gram prior, and other orders and folds
    python -m bench.ablation --of length --data short.txt novel.txt   steps and dropout on texts of several lengths

Losses are those of the best weights over the whole validation split, and of the n-gram table alone.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.engines import baseline
from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.runs import reached, training_row
from charformer.data.corpus import Corpus
from charformer.device import keep_freed_memory
from charformer.errors import UserError
from charformer.presets import PRESETS, Preset
from charformer.runs.folder import RunDir
from charformer.training.recipe import Recipe
from charformer.training.session import Place
from charformer.training.trainer import Trainer
from charformer.ui.console import PlainConsole, progress_bar

EVALUATIONS = 5  # in a training of a given number of steps


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
    parser.add_dtype()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    chosen = variants(preset, args.of, args.variant)
    corpora = [load_text(data) for data in args.data]
    keep_freed_memory()
    config = {"preset": args.preset, "model": preset.model.to_dict(), "training": preset.pretrain.to_dict()}
    config["corpora"] = [text_config(corpus.summary()) for corpus in corpora]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar(PlainConsole(stderr=True)) as on_progress:
        for corpus, (name, change) in product(corpora, chosen.items()):
            run = RunDir(Path(folder) / str(len(rows)))
            rows.append(_train(args, run, corpus, change, partial(on_progress, name)) | {"variant": name})
            keep(args, config, rows)
    _print(args.of, rows)
    return 0


def _train(
    args: argparse.Namespace, run: RunDir, corpus: Corpus, change: Change, on_step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Pretrain the preset with ``change`` to its last step, and return its row.

    Without --steps, a short text takes as many as in charformer-train. The table alone is scored by the model before
    its first step, if it starts from zero.
    """
    changes, patch = ({}, change) if callable(change) else (change, None)
    values = {"patience": 0} | ({"max_steps": args.steps} if args.steps else {}) | changes
    if steps := values.get("max_steps"):
        values["eval_interval"] = max(1, round(steps / EVALUATIONS))
    session = Recipe(args.preset, None, "none", values).session(run, corpus, Place.choose("auto", args.dtype))
    session.open()
    trainer = session.trainer
    config, counters, prior = trainer.config, trainer.counters, trainer.prior
    table_loss = trainer.score() if prior and config.zero_init else None
    if patch:
        patch(trainer)
    for step in trainer.steps():
        on_step(step.step, config.max_steps)
    return training_row(
        run,
        val_loss=trainer.whole_validation_loss(),
        table_loss=table_loss,
        ngrams=len(prior.tables.whole) if prior else None,
        table_bytes=run.ngram.stat().st_size if prior else None,
        counting_seconds=prior.tables.seconds if prior else None,
        best_step=counters.best_step,
        characters=counters.characters,
        passes=counters.characters / len(corpus.train),
        seconds=counters.train_seconds,
        text=corpus.name,
        steps=config.max_steps,
        changes=changes,
    )


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
        shown.append(row | {"change": row["val_loss"] - first["val_loss"], "after": reached(row, baseline.ITS_LOSS)})
    columns = {
        "text": "{text}",
        "variant": "{variant}",
        "steps": "{steps:,}",
        "passes": "{passes:.1f}",
        "best step": "{best_step:,}",
        "validation loss": "{val_loss:.4f}",
        "change": "{change:+.4f}",
        f"estimated {baseline.ITS_LOSS:g} after": "{after:}",
        "seconds": "{seconds:.0f}",
        "chars/s": "{chars_per_second[p50]:,.0f}",
        "table alone": "{table_loss:.4f}",
        "n-grams": "{ngrams:,}",
        "counting, s": "{counting_seconds:.1f}",
    }
    print_table(of, shown, columns)


if __name__ == "__main__":
    sys.exit(main())

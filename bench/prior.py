"""Measure what each part of an n-gram prior contributes, by repeating a preset's pretraining without it.

    python -m bench.prior --preset nano --steps 150        some fifteen trainings

Every variant trains with the same settings, seed and batches. Its loss is that of the best weights over the whole
validation split, with the prior's context cut at the start of each window; the table alone is scored in the same way.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from bench.harness import results
from bench.harness.program import BenchParser, corpus_config, execute, keep, load_text, show, table
from bench.harness.variants import open_trainer, with_changes
from charformer.device import keep_freed_memory
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.training.trainer import Trainer

Patch = Callable[[Trainer], None]


def _unpatched(trainer: Trainer) -> None:
    """Leave the trainer as it is."""


def _without_input(trainer: Trainer) -> None:
    def embed(prior: Tensor) -> Tensor:
        return prior.new_zeros(1)

    trainer.model.ngram_prior.embed = embed  # type: ignore[union-attr, method-assign]


def _without_correction(trainer: Trainer) -> None:
    def correct(logits: Tensor, _h: Tensor, _prior: Tensor) -> Tensor:
        return logits

    trainer.model.ngram_prior.correct = correct  # type: ignore[union-attr, method-assign]


def _without_gate(trainer: Trainer) -> None:
    def correct(logits: Tensor, _h: Tensor, prior: Tensor) -> Tensor:
        return logits + prior.log()

    trainer.model.ngram_prior.correct = correct  # type: ignore[union-attr, method-assign]


def _without_input_and_gate(trainer: Trainer) -> None:
    _without_input(trainer)
    _without_gate(trainer)


def _without_folds(trainer: Trainer) -> None:
    """Let a table that has counted a window predict it."""
    assert trainer.prior is not None
    tables = trainer.prior.tables
    trainer.prior.tables = replace(tables, folds=[tables.whole] * len(tables.folds))


VARIANTS: dict[str, tuple[dict[str, Any], Patch]] = {
    "as it is": ({}, _unpatched),
    "no prior": ({"ngram_order": 0}, _unpatched),
    "no input": ({}, _without_input),
    "no correction": ({}, _without_correction),
    "no gate": ({}, _without_gate),
    "no input, no gate": ({}, _without_input_and_gate),
    "no folds": ({}, _without_folds),
    "4 folds": ({"ngram_folds": 4}, _unpatched),
    "16 folds": ({"ngram_folds": 16}, _unpatched),
    **{f"order {order}": ({"ngram_order": order}, _unpatched) for order in (3, 4, 5, 6, 7, 8)},
}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("prior", __doc__)
    parser.add_presets("nano", several=False)
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=list(VARIANTS), help="(default: all)")
    parser.add_count("--steps", None, "steps of each run")
    parser.add_data()
    parser.add_device()
    parser.add_dtype()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    notices = Console(stderr=True)
    corpus = load_text(args.data, notices)
    keep_freed_memory()
    preset = with_changes(PRESETS[args.preset], {"max_steps": args.steps, "patience": 0})
    if not preset.model.ngram_order:
        raise UserError(f"{args.preset} has no n-gram prior; choose another --preset")
    config = {
        "preset": args.preset,
        "model": preset.model.to_dict(),
        "training": preset.pretrain.to_dict(),
        "corpus": corpus_config(corpus),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=notices) as progress:
        for name in args.variant:
            changes, patch = VARIANTS[name]
            trainer = open_trainer(args, with_changes(preset, changes), corpus, Path(folder) / str(len(rows)))
            patch(trainer)
            task = progress.add_task(name, total=trainer.config.max_steps)
            for step in trainer.steps():
                progress.update(task, completed=step.step)
            rows.append(_row(trainer, name, changes))
            keep(args, config, rows)
    _print(rows)
    return 0


def _row(trainer: Trainer, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    prior = trainer.prior
    return results.training_row(
        trainer.run,
        variant=name,
        changes=changes,
        val_loss=trainer.whole_validation_loss(),
        table_loss=table_loss(trainer),
        ngrams=len(prior.tables.whole) if prior else None,
        table_bytes=trainer.run.ngram.stat().st_size if prior else None,
        counting_seconds=prior.tables.seconds if prior else None,
        characters=trainer.counters.characters,
        seconds=trainer.counters.train_seconds,
    )


def table_loss(trainer: Trainer) -> float | None:
    """Return the loss of the table alone on the windows of the validation split, or None without a prior."""
    if trainer.prior is None:
        return None
    ids, length = trainer.corpus.validation, trainer.model.config.block_size
    starts = np.arange(0, len(ids) - length, length)
    rows = trainer.prior.within("validation", starts, length).cpu().numpy()
    places = starts[:, None] + np.arange(1, length + 1)
    targets = trainer.prior.to_vocab[ids[places]][..., None]
    return -float(np.log(np.take_along_axis(rows, targets, axis=2), dtype=np.float64).mean())


def _print(rows: list[dict[str, Any]]) -> None:
    figures = ["validation loss", "change", "table alone", "n-grams", "MB", "counting", "seconds"]
    found = table("parts of an n-gram prior", ["variant"], figures)
    for row in rows:
        counted = row["ngrams"] is not None
        found.add_row(
            row["variant"],
            f"{row['val_loss']:.4f}",
            f"{row['val_loss'] - rows[0]['val_loss']:+.4f}",
            f"{row['table_loss']:.4f}" if counted else "",
            f"{row['ngrams']:,}" if counted else "",
            f"{row['table_bytes'] / 1e6:.1f}" if counted else "",
            f"{row['counting_seconds']:.1f} s" if counted else "",
            f"{row['seconds']:.0f}",
        )
    show(found)


if __name__ == "__main__":
    sys.exit(main())

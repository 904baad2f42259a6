"""Measure how many steps and how much dropout suit texts of several lengths, in a small grid of pretrainings.

    python -m bench.text_length --data short.txt novel.txt --steps 30 60 120 240 450 --dropout 0 0.2

Every training of a text uses the same seed. Its loss is that of the best weights over the whole validation split. The
n-gram table alone, which is counted before any step, is scored on the same split.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.harness import results
from bench.harness.program import BenchParser, corpus_config, execute, keep, load_text, show, table
from bench.harness.variants import open_trainer, with_changes
from bench.prior import table_loss
from charformer.data.corpus import Corpus
from charformer.device import keep_freed_memory
from charformer.presets import PRESETS
from charformer.training.recipe import steps_for
from charformer.training.trainer import Trainer

EVALUATIONS = 5  # in a training


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("text_length", __doc__)
    parser.add_presets("nano", several=False)
    parser.add_argument("--data", metavar="FILE|NAME", nargs="+", required=True, help="texts to train on, one by one")
    parser.add_argument(
        "--steps", type=int, nargs="+", metavar="N", help="numbers of steps (default: charformer-train's for the text)"
    )
    parser.add_argument(
        "--dropout", type=float, nargs="+", metavar="X", default=[0.0], help="rates of dropout (default: 0)"
    )
    parser.add_argument(
        "--ngram-order", type=int, nargs="+", metavar="K", help="orders of the n-gram prior (default: the preset's)"
    )
    parser.add_device()
    parser.add_dtype()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    notices = Console(stderr=True)
    keep_freed_memory()
    preset = PRESETS[args.preset]
    corpora = [load_text(name, notices) for name in args.data]
    config = {
        "preset": args.preset,
        "model": preset.model.to_dict(),
        "training": preset.pretrain.to_dict(),
        "corpora": [corpus_config(corpus) for corpus in corpora],
    }
    per_step = preset.pretrain.batch_size * preset.model.block_size
    orders = args.ngram_order or [preset.model.ngram_order]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rows: list[dict[str, Any]] = []
    with Progress(*columns, console=notices) as progress:
        grid = product(corpora, orders, args.dropout, args.steps or [None])
        for corpus, order, dropout, given in grid:
            steps = given or steps_for(preset.pretrain, per_step, len(corpus.train))
            changes = {
                "max_steps": steps,
                "eval_interval": max(1, round(steps / EVALUATIONS)),
                "patience": 0,
                "dropout": dropout,
                "ngram_order": order,
            }
            task = progress.add_task(f"{corpus.name}, dropout {dropout}, order {order}", total=steps)
            with tempfile.TemporaryDirectory() as folder:
                trainer = open_trainer(args, with_changes(preset, changes), corpus, Path(folder))
                for step in trainer.steps():
                    progress.update(task, completed=step.step)
                rows.append(_row(trainer, corpus, changes))
            keep(args, config, rows)
    _print(rows)
    return 0


def _row(trainer: Trainer, corpus: Corpus, changes: dict[str, Any]) -> dict[str, Any]:
    return results.training_row(
        trainer.run,
        text=corpus.name,
        characters=len(corpus.ids),
        changes=changes,
        passes=trainer.counters.characters / len(corpus.train),
        best_step=trainer.counters.best_step,
        val_loss=trainer.whole_validation_loss(),
        table_loss=table_loss(trainer),
        seconds=trainer.counters.train_seconds,
    )


def _print(rows: list[dict[str, Any]]) -> None:
    found = table("steps by the length of a text", ["text"], ["characters", "order", "dropout", "steps", "passes"])
    for column in ("best step", "validation loss", "the table alone", "seconds"):
        found.add_column(column, justify="right")
    for row in rows:
        changes = row["changes"]
        found.add_row(
            row["text"],
            f"{row['characters']:,}",
            str(changes["ngram_order"]),
            f"{changes['dropout']:g}",
            f"{changes['max_steps']:,}",
            f"{row['passes']:.1f}",
            f"{row['best_step']:,}",
            f"{row['val_loss']:.4f}",
            "" if row["table_loss"] is None else f"{row['table_loss']:.4f}",
            f"{row['seconds']:.0f}",
        )
    show(found)


if __name__ == "__main__":
    sys.exit(main())

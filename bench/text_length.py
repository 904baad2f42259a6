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

from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.variants import preset_config, train_variant, with_changes
from charformer.device import keep_freed_memory
from charformer.presets import PRESETS
from charformer.training.recipe import steps_for
from charformer.ui.console import PlainConsole, progress_bar

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
    keep_freed_memory()
    preset = PRESETS[args.preset]
    corpora = [load_text(name) for name in args.data]
    config = preset_config(args.preset, preset) | {"corpora": [text_config(corpus.summary()) for corpus in corpora]}
    per_step = preset.pretrain.batch_size * preset.model.block_size
    orders = args.ngram_order or [preset.model.ngram_order]
    rows: list[dict[str, Any]] = []
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for corpus, order, dropout, given in product(corpora, orders, args.dropout, args.steps or [None]):
            steps = given or steps_for(preset.pretrain, per_step, len(corpus.train))
            changes = {"max_steps": steps, "eval_interval": max(1, round(steps / EVALUATIONS)), "patience": 0}
            changes |= {"dropout": dropout, "ngram_order": order}
            name = f"{corpus.name}, dropout {dropout:g}, order {order}, {steps} steps"
            with tempfile.TemporaryDirectory() as folder:
                _, row = train_variant(args, with_changes(preset, changes), name, corpus, Path(folder), on_progress)
            rows.append(row | {"text": corpus.name, "text_characters": len(corpus.ids), "changes": changes})
            keep(args, config, rows)
    columns = {
        "text": "{text}",
        "characters": "{text_characters:,}",
        "order": "{changes[ngram_order]:}",
        "dropout": "{changes[dropout]:g}",
        "steps": "{changes[max_steps]:,}",
        "passes": "{passes:.1f}",
        "best step": "{best_step:,}",
        "validation loss": "{val_loss:.4f}",
        "the table alone": "{table_loss:.4f}",
        "seconds": "{seconds:.0f}",
    }
    print_table("steps by the length of a text", rows, columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())

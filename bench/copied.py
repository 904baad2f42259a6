"""Measure how much of what a model writes stands word for word in its training text.

    python -m bench.copied --run runs/pretrain runs/plain --characters 20000

The validation part, which no model has seen, shows how much of such a text stands in another part of it anyway.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, print_table, text_of
from charformer.api import load
from charformer.data.corpus import Corpus
from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, progress_bar

SEED = 1  # of the samples
LONG = 50  # characters; a longer match is hardly chance


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("copied", __doc__)
    parser.add_argument("--run", metavar="DIR", nargs="+", required=True, help="runs whose text is in the cache")
    parser.add_count("--characters", 20_000, "of each sample")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    config = {"characters": args.characters, "seed": SEED}
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for folder in args.run:
            run = RunDir(folder)
            corpus = text_of(run)
            text = _text(corpus, corpus.train)
            if not rows:
                held_out = _text(corpus, corpus.validation)[: args.characters]
                rows.append(_row("the validation part itself", None, matches(held_out, text, on_progress)))
            sample = load(folder).generate("", max_new_tokens=args.characters, seed=SEED)
            val_loss = min(row["val_loss"] for row in run.read_metrics())
            rows.append(_row(Path(folder).name, val_loss, matches(sample, text, on_progress)))
            keep(args, config, rows)
    columns = {"text": "{run}", "validation, estimated": "{val_loss:.4f}", "mean": "{mean:.1f}"}
    columns |= {name: f"{{percentiles[{name}]:}}" for name in ("p50", "p90", "p99")} | {"longest": "{longest:}"}
    columns[f"in matches of {LONG} or more"] = "{in_long_matches:.1%}"
    print_table("characters that stand in the training text, by place", rows, columns)
    return 0


def matches(sample: str, text: str, on_progress: Callable[[str, int, int], None]) -> NDArray[np.int64]:
    """Return, for each place of ``sample``, the length of the longest piece from there on that ``text`` contains.

    These are the matching statistics of Chang & Lawler 1994. A piece without its first character still occurs, so that
    the next length is at most one less.
    """
    lengths = np.zeros(len(sample), np.int64)
    length = 0
    for place in range(len(sample)):
        while place + length < len(sample) and sample[place : place + length + 1] in text:
            length += 1
        lengths[place] = length
        length = max(0, length - 1)
        if place % 100 == 0:
            on_progress("looking up the sample", place, len(sample))
    return lengths


def _text(corpus: Corpus, ids: NDArray[np.integer[Any]]) -> str:
    return "".join(np.array(list(corpus.alphabet))[ids])


def _row(name: str, val_loss: float | None, lengths: NDArray[np.int64]) -> dict[str, Any]:
    """Return a row: the lengths, and the share of characters that lie in a match of at least ``LONG`` characters."""
    places = np.arange(len(lengths))
    copied = np.maximum.accumulate(np.where(lengths >= LONG, places + lengths, 0)) > places
    return results.row(
        engine="charformer",
        run=name,
        val_loss=val_loss,
        mean=float(lengths.mean()),
        percentiles={f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)},
        longest=int(lengths.max()),
        in_long_matches=float(copied.mean()),
    )


if __name__ == "__main__":
    sys.exit(main())

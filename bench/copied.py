"""Measure how much of what a model writes stands word for word in its training text.

    python -m bench.copied --run runs/pretrain runs/plain --characters 20000

At each place of a sample, the match is the longest piece of the sample from there on that the training text contains
(Chang & Lawler 1994 call these lengths the matching statistics). The validation part, which no model has seen, is
measured in the same way: that much of a text of this kind stands in another part of it anyway.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, show, table
from charformer.api import load
from charformer.data.cached import find_cached
from charformer.data.corpus import Corpus
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, progress_bar

LONG = 50  # characters; a longer match is hardly chance


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = BenchParser("copied", __doc__)
    parser.add_argument("--run", metavar="DIR", nargs="+", required=True, help="runs whose text is in the cache")
    parser.add_count("--characters", 20_000, "of each sample")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the samples (default: 1)")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    config = {"characters": args.characters, "seed": args.seed}
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for folder in args.run:
            run = RunDir(folder)
            corpus = find_cached(run.read_section("corpus"))
            if corpus is None:
                raise UserError(f"the text of {folder} is neither in the cache nor where it lay")
            text = _text(corpus, corpus.train)
            if not rows:
                held_out = _text(corpus, corpus.validation)[: args.characters]
                rows.append(_row("the validation part itself", None, matches(held_out, text, on_progress)))
            sample = load(folder).generate("", max_new_tokens=args.characters, seed=args.seed)
            val_loss = min(row["val_loss"] for row in run.read_metrics())
            rows.append(_row(Path(folder).name, val_loss, matches(sample, text, on_progress)))
            keep(args, config, rows)
    _print(rows)
    return 0


def matches(sample: str, text: str, on_progress: Callable[[str, int, int], None]) -> NDArray[np.int64]:
    """Return, for each place of ``sample``, the length of the longest piece from there on that ``text`` contains.

    A piece without its first character still occurs, so that the next length is at most one less.
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
    copied = np.zeros(len(lengths), bool)
    for place in np.flatnonzero(lengths >= LONG):
        copied[place : place + lengths[place]] = True
    return results.row(
        engine="charformer",
        run=name,
        val_loss=val_loss,
        mean=float(lengths.mean()),
        percentiles={f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)},
        longest=int(lengths.max()),
        in_long_matches=float(copied.mean()),
    )


def _print(rows: list[dict[str, Any]]) -> None:
    figures = ["validation, estimated", "mean", "p50", "p90", "p99", "longest", f"in matches of {LONG} or more"]
    found = table("characters that stand in the training text, by place", ["text"], figures)
    for row in rows:
        loss = "" if row["val_loss"] is None else f"{row['val_loss']:.4f}"
        lengths = [str(length) for length in (*row["percentiles"].values(), row["longest"])]
        found.add_row(row["run"], loss, f"{row['mean']:.1f}", *lengths, f"{row['in_long_matches']:.1%}")
    show(found)


if __name__ == "__main__":
    sys.exit(main())

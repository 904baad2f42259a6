"""charformer runs: list the runs of a folder."""

import argparse
import json
import time
from contextlib import suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from charformer.commands.common import Parser, execute, logs_to, nonempty
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.listing import RUNS, find_runs
from charformer.runs.tensors import read_metadata
from charformer.ui.console import PlainConsole, age, printable


def main(argv: list[str] | None = None) -> int:
    return execute(build_parser(), argv, _run)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("charformer runs", "List the runs of a folder, the last written first.", "")
    parser.add_argument("folder", nargs="?", type=nonempty, default=RUNS, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _run(args: argparse.Namespace) -> int:
    with logs_to(PlainConsole(stderr=True)):
        found = [_describe(run) for run in find_runs(args.folder)]
    if args.json:
        print(json.dumps(found))
        return 0
    if not found:
        raise UserError(f"there is no run under {args.folder}; `charformer-train` makes one")
    table = Table("folder", "stage", "text", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("step", "of", "validation", "written"):
        table.add_column(column, justify="right")
    for row in found:
        loss = "" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
        figures = (row["best_step"], row["max_steps"], loss, age(time.time() - row["written"]))
        texts = (printable(str(row[key])) for key in ("folder", "stage", "text"))  # of whoever made the run
        table.add_row(*texts, *("" if figure is None else str(figure) for figure in figures))
    width = None if Console().is_terminal else 150
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
    return 0


def _describe(run: RunDir) -> dict[str, Any]:
    """Return what is known of a run: its best step and the estimate of its loss, in nats a character."""
    values, about = run.read_config(), read_metadata(run.weights)
    corpus, training = values.get("corpus"), values.get("training")
    loss = None
    with suppress(KeyError, ValueError):  # another program may have written the weights
        loss = float(about["val_loss"])
    return {
        "folder": str(run.path),
        "stage": values.get("stage"),
        "text": corpus.get("name") if isinstance(corpus, dict) else None,
        "best_step": int(about["step"]) if about.get("step", "").isdecimal() else None,
        "max_steps": training.get("max_steps") if isinstance(training, dict) else None,
        "val_loss": loss,
        "written": run.written,
    }

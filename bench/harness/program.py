"""What every program of this folder has: a command line, a text to train on, a result file, and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.harness import results
from charformer.commands.common import Parser, execute
from charformer.data import corpus as corpora
from charformer.data.corpus import Corpus
from charformer.presets import PRESETS
from kernels.checks.cli import positive, writable_file

__all__ = ["BenchParser", "corpus_config", "execute", "keep", "load_text", "positive", "show", "table", "writable_file"]


class BenchParser(Parser):
    """The command line of ``python -m bench.NAME``, with the options that several benches share.

    Args:
        name: of the bench.
        result: whether --json names a file for its result.
        doc: its docstring, whose first line describes it; lines that follow and are indented by four are examples.
    """

    def __init__(self, name: str, doc: str, *, result: bool = True) -> None:
        first, _, rest = doc.partition("\n")
        examples = "\n".join(line for line in rest.splitlines() if line.startswith("    "))
        super().__init__(f"bench.{name}", first, f"examples:\n{examples}" if examples else "")
        self.set_defaults(bench=name)
        if result:
            self.add_argument("--json", type=writable_file, metavar="FILE", help="where the result goes")

    def add_presets(self, *default: str, several: bool = True) -> None:
        """Add --preset; several of them, or one."""
        shown = f"(default: {' '.join(default)})"
        if several:
            self.add_argument("--preset", choices=PRESETS, nargs="+", default=list(default), help=shown)
        else:
            self.add_argument("--preset", choices=PRESETS, default=default[0], help=shown)

    def add_count(self, flag: str, default: int | None, what: str) -> None:
        """Add an option that takes a positive whole number."""
        shown = f"{what} (default: {'the preset' + chr(39) + 's' if default is None else default})"
        self.add_argument(flag, type=positive, default=default, metavar="N", help=shown)

    def add_data(self, flag: str = "--data", default: str | None = None) -> None:
        """Add an option that names a text; ``load_text`` takes its value."""
        shown = f"(default: {default or 'tiny-shakespeare'})"
        self.add_argument(flag, metavar="FILE|NAME", default=default, help=shown)

    def add_device(self) -> None:
        """Add --device."""
        self.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")

    def add_dtype(self) -> None:
        """Add --dtype."""
        self.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default: auto)")

    def add_chart(self, what: str) -> None:
        """Add --chart."""
        self.add_argument("--chart", type=writable_file, metavar="FILE", help=f"where {what} goes, a PNG")


def load_text(data: str | None, notices: Console) -> Corpus:
    """Return the text ``data``; for None Tiny Shakespeare or, where it cannot be fetched, its stand-in, with a
    notice."""
    if data is not None:
        return corpora.load(data)
    return corpora.load_or_stand_in("tiny-shakespeare", notice=lambda text: notices.print(f"note: {text}"))


def corpus_config(corpus: Corpus) -> dict[str, Any]:
    """Return what a result says of its text."""
    summary = corpus.summary()
    return {key: summary[key] for key in ("name", "sha256", "characters")}


def keep(args: Any, config: dict[str, Any], rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write the result file that --json names, if it names one."""
    path: Path | None = args.json
    if path is not None:
        results.write_result(path, results.result(args.bench, config, rows) | facts)


def table(title: str | None, texts: Sequence[str], figures: Sequence[str]) -> Table:
    """Return an empty table with columns of text on the left, and of figures behind them."""
    found = Table(*texts, title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in figures:
        found.add_column(column, justify="right")
    return found


def show(*tables: Table) -> None:
    """Print tables as wide as the terminal, or 150 characters wide where there is none."""
    console = Console(width=None if Console().is_terminal else 150)
    for found in tables:
        console.print(found)

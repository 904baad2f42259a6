"""The parts that all bench programs share: a command line, a text to train on, a result file, and tables."""

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

__all__ = [
    "BenchParser",
    "corpus_config",
    "execute",
    "keep",
    "load_text",
    "positive",
    "show",
    "summary_of_text",
    "table",
    "writable_file",
]


class BenchParser(Parser):
    """The command line of ``python -m bench.NAME``, with methods for the options that several benches share.

    Args:
        name: the name of the bench.
        doc: its module docstring. The first line describes it, and later lines that are indented by four are examples.
        result: whether to add --json, which names a file for the result.
    """

    def __init__(self, name: str, doc: str, *, result: bool = True) -> None:
        first, _, rest = doc.partition("\n")
        examples = "\n".join(line for line in rest.splitlines() if line.startswith("    "))
        super().__init__(f"bench.{name}", first, f"examples:\n{examples}" if examples else "")
        self.set_defaults(bench=name)
        if result:
            self.add_argument("--json", type=writable_file, metavar="FILE", help="write the result to this file")

    def add_presets(self, *default: str, several: bool = True) -> None:
        """Add --preset, which takes one preset or, unless ``several`` is false, more."""
        if several:
            shown = f"presets to measure (default: {' '.join(default)})"
            self.add_argument("--preset", choices=PRESETS, nargs="+", default=list(default), help=shown)
        else:
            shown = f"preset to measure (default: {default[0]})"
            self.add_argument("--preset", choices=PRESETS, default=default[0], help=shown)

    def add_count(self, flag: str, default: int | None, what: str) -> None:
        """Add an option that takes a positive integer; without a default the preset's value applies."""
        shown = f"{what} (default: {'the preset' + chr(39) + 's' if default is None else default})"
        self.add_argument(flag, type=positive, default=default, metavar="N", help=shown)

    def add_data(self, flag: str = "--data", default: str | None = None) -> None:
        """Add an option that names a text, whose value ``load_text`` takes."""
        shown = f"text to train on (default: {default or 'tiny-shakespeare'})"
        self.add_argument(flag, metavar="FILE|NAME", default=default, help=shown)

    def add_device(self) -> None:
        """Add --device."""
        self.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device to measure (default: auto)"
        )

    def add_dtype(self) -> None:
        """Add --dtype."""
        self.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16"),
            default="auto",
            help="dtype of matrix products (default: auto)",
        )

    def add_chart(self, what: str) -> None:
        """Add --chart, which names a PNG file."""
        self.add_argument("--chart", type=writable_file, metavar="FILE", help=f"write {what} to this PNG file")


def load_text(data: str | None, notices: Console) -> Corpus:
    """Return the text that ``data`` names.

    None means Tiny Shakespeare or, if that cannot be downloaded, its stand-in, with a notice.
    """
    if data is not None:
        return corpora.load(data)
    return corpora.load_or_stand_in("tiny-shakespeare", notice=lambda text: notices.print(f"note: {text}"))


def corpus_config(corpus: Corpus) -> dict[str, Any]:
    """Return the name, SHA-256 and characters of a text, for the config of a result."""
    return summary_of_text(corpus.summary())


def summary_of_text(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the name, SHA-256 and characters of a text from its summary, whose other entries name a place."""
    return {key: summary[key] for key in ("name", "sha256", "characters")}


def keep(args: Any, config: dict[str, Any], rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write the result file that --json names, if it names one."""
    path: Path | None = args.json
    if path is not None:
        results.write_result(path, results.result(args.bench, config, rows) | facts)


def table(title: str | None, texts: Sequence[str], figures: Sequence[str]) -> Table:
    """Return an empty table with columns of text on the left, followed by right-aligned columns of figures."""
    found = Table(*texts, title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in figures:
        found.add_column(column, justify="right")
    return found


def show(*tables: Table) -> None:
    """Print tables as wide as the terminal, or 150 characters wide where there is none."""
    console = Console(width=None if Console().is_terminal else 150)
    for found in tables:
        console.print(found)

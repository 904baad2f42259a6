"""The parts that all bench programs share: a command line, a text to train on, a result file, and tables."""

from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import Any

from bench.harness import results
from charformer.commands.common import Parser
from charformer.commands.common import execute as execute
from charformer.data import corpus as corpora
from charformer.data.cached import find_cached
from charformer.data.corpus import Corpus
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole
from kernels.checks.cli import positive, writable_file


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
        many: dict[str, Any] = {"nargs": "+", "default": list(default)} if several else {"default": default[0]}
        self.add_argument("--preset", choices=PRESETS, help=f"(default: {' '.join(default)})", **many)

    def add_count(self, flag: str, default: int | None, what: str) -> None:
        """Add an option that takes a positive integer; without a default the preset's value applies."""
        shown = f"{what} (default: {'the preset' + chr(39) + 's' if default is None else default})"
        self.add_argument(flag, type=positive, default=default, metavar="N", help=shown)

    def add_runs(self) -> None:
        """Add --runs, the folder of the bench's runs."""
        folder = Path("runs") / self.get_default("bench")
        self.add_argument(
            "--runs", type=Path, default=folder, metavar="DIR", help=f"the runs' folder (default: {folder})"
        )

    def add_data(self, flag: str = "--data", default: str | None = None) -> None:
        """Add an option that names a text, whose value ``load_text`` takes."""
        shown = f"text to train on (default: {default or 'tiny-shakespeare'})"
        self.add_argument(flag, metavar="FILE|NAME", default=default, help=shown)

    def add_device(self) -> None:
        """Add --device."""
        devices = ("auto", "cpu", "cuda")
        self.add_argument("--device", choices=devices, default="auto", help="device to measure (default: auto)")

    def add_dtype(self) -> None:
        """Add --dtype."""
        dtypes, shown = ("auto", "float32", "bfloat16"), "dtype of matrix products (default: auto)"
        self.add_argument("--dtype", choices=dtypes, default="auto", help=shown)


def load_text(data: str | None) -> Corpus:
    """Return the text that ``data`` names.

    None means Tiny Shakespeare or, if that cannot be downloaded, its stand-in, with a notice.
    """
    if data is not None:
        return corpora.load(data)
    notices = PlainConsole(stderr=True)
    return corpora.load_or_stand_in("tiny-shakespeare", notice=lambda text: notices.print(f"note: {text}"))


def text_of(run: RunDir) -> Corpus:
    """Return the text that a run was trained on. Raise UserError if it cannot be found."""
    corpus = find_cached(run.read_section("corpus"))
    if corpus is None:
        raise UserError(f"the text of {run.path} is neither in the cache nor where it lay")
    return corpus


def text_config(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the name, SHA-256 and characters of a text from its summary, whose other entries name a place."""
    return {key: summary[key] for key in ("name", "sha256", "characters")}


def run_config(run: RunDir) -> dict[str, Any]:
    """Return the entries of a result's config that describe the run that was measured."""
    found = run.read_config()
    described = {key: found.get(key) for key in ("stage", "preset", "model", "training")}
    return described | {"corpus": text_config(found["corpus"])}


def keep(args: Any, config: dict[str, Any], rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write the result file that --json names, if it names one."""
    path: Path | None = args.json
    if path is not None:
        results.write_result(path, results.result(args.bench, config, rows) | facts)


def print_table(title: str | None, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a table in Markdown.

    Args:
        columns: by header, how to format a row's values, as in ``"{bytes:,} of {batch}"``. A format with a colon is
            that of a figure, which is aligned to the right. A cell is empty where a value is missing or None.
    """
    body = [[_cell(form, row) for form in columns.values()] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip([*columns], *body, strict=True)]
    sides = [">" if ":" in form else "<" for form in columns.values()]
    rule = [f"{'-' * (width - 1)}{':' if side == '>' else '-'}" for side, width in zip(sides, widths, strict=True)]
    print(f"\n{title}\n" if title else "")
    for cells in ([*columns], rule, *body):
        padded = (f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True))
        print(f"| {' | '.join(padded)} |")


class _Formatter(Formatter):
    def format_field(self, value: Any, form: str) -> str:
        return "" if value is None else str(super().format_field(value, form))


def _cell(form: str, row: dict[str, Any]) -> str:
    try:
        return _Formatter().vformat(form, (), row)
    except (KeyError, TypeError):  # a missing value, or a value of None that should have parts
        return ""

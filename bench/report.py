"""Write result files side by side, as Markdown tables and as a chart.

    python -m bench.report bench/results/throughput.json
    python -m bench.report before.json after.json --chart report.png > report.md

The chart has curves of bench.convergence, the parts of steps of bench.step, and otherwise bars of characters a second.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.engines import baseline
from bench.harness import results
from bench.harness.charts import Bar, Curve, Stack, write_bars, write_curves, write_stacks
from bench.harness.program import BenchParser, execute
from bench.harness.speeds import Section, print_speeds, section_of, sections_of, title
from charformer.errors import UserError
from charformer.presets import PRESETS
from kernels.checks.cli import writable_file

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("report", __doc__, result=False)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file that a bench wrote with --json")
    parser.add_argument("--part", metavar="NAME", help="show only rows of this part: interleaved, grid, scaling, ...")
    parser.add_argument("--chart", type=writable_file, metavar="FILE", help="also write a chart to this PNG file")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    found = {name: results.read_result(path) for name, path in zip(_names(args.files), args.files, strict=True)}
    rows = {name: _timed(result["rows"], args.part) for name, result in found.items()}
    if not any(rows.values()):
        raise UserError("these files have no rows with characters a second; name other files or another --part")
    _print(found, rows)
    if args.chart:
        _draw(args.chart, found, rows)
    return 0


def _draw(path: Path, contents: dict[str, Any], rows: dict[str, list[Row]]) -> None:
    benches = {result["bench"] for result in contents.values()}
    if benches == {"convergence"}:
        lines = [curve for result in contents.values() for curve in curves(result)]
        write_curves(path, lines, baseline.ITS_LOSS, baseline_curve())
    elif benches == {"step"}:
        write_stacks(path, [(preset, _stacks(rows, preset)) for _, preset in sections_of(rows)], "seconds of a step")
    else:
        panels = [(title(section), _bars(rows, section)) for section in sections_of(rows)]
        write_bars(path, [panel for panel in panels if panel[1]])


def _print(contents: dict[str, Any], rows: dict[str, list[Row]]) -> None:
    """Print where each result was taken, and its speeds."""
    for name, result in contents.items():
        machine = result["machine"]
        where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
        noisy = "; a noisy machine" if result.get("noisy_machine") else ""
        torch = result["versions"].get("torch")
        print(f"- {name}: {result['bench']} on {where}; torch {torch}, commit {result['commit']}{noisy}")
    print_speeds(rows)


def curves(result: dict[str, Any]) -> list[Curve]:
    """Return a curve for each row of a result of bench.convergence, with the label of its preset and engine."""
    presets = result["config"].get("presets", {})

    def label(row: Row) -> str:
        if row["engine"] != "charformer":
            return f"{row['engine']}, {row['preset']}"
        has_prior = presets.get(row["preset"], {}).get("model", {}).get("ngram_order")
        return f"{row['preset']}, with an n-gram prior" if has_prior else str(row["preset"])

    return [(label(row), row["curve"]) for row in result["rows"]]


def baseline_curve() -> Curve:
    """Return the pretraining curve of the baseline's page, with the characters of a step as its code has them."""
    preset = PRESETS["baseline-as-coded"]
    characters = preset.pretrain.batch_size * preset.model.block_size
    points = baseline.PUBLISHED["pretrain", "none"].items()
    line = [{"characters": step * characters, "val_loss": validation} for step, (_, validation) in points]
    return "the baseline's page, steps as coded", line


def _names(files: list[Path]) -> list[str]:
    """Return the files' names without their suffix, or their whole paths if two of those are the same."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def _timed(rows: list[Row], part: str | None) -> list[Row]:
    return [row for row in rows if row["chars_per_second"] and part in (None, row.get("part"))]


def _bars(rows: dict[str, list[Row]], section: Section) -> list[Bar]:
    """Return a bar for each row, the fastest of each result first.

    Frozen weights and matrix products alone appear only in the tables: they do far less work, and would dwarf the rest.
    """
    several = len(rows) > 1
    return [
        (
            f"{results.label(row)} · {name}" if several else results.label(row),
            row["chars_per_second"],
            row["engine"].startswith("charformer"),
        )
        for name, group in rows.items()
        for row in sorted(group, key=lambda row: row["chars_per_second"]["p50"], reverse=True)
        if section_of(row) == section and row["freeze"] in (None, "none") and row["engine"] != "matmuls"
    ]


def _stacks(rows: dict[str, list[Row]], preset: str) -> list[Stack]:
    """Return the parts of a preset's step in each result, and the matrix products alone in the last one."""
    steps = [(name, row) for name, group in rows.items() for row in group if row["preset"] == preset]
    last = steps[-1][1]
    alone = {"matmuls": last["matmul_seconds"], "attention": last.get("attention_matmul_seconds", 0.0)}
    return [*((name, row["seconds"]) for name, row in steps), ("matrix products alone", alone)]


if __name__ == "__main__":
    sys.exit(main())

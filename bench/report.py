"""Write result files side by side, as Markdown tables and as a chart.

python -m bench.report bench/results/throughput.json
python -m bench.report before.json after.json --markdown report.md --chart report.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.engines import baseline
from bench.freeze import PUBLISHED
from bench.harness import results
from bench.harness.charts import Bar, Curve, write_bars, write_curves
from bench.harness.program import BenchParser, execute, writable_file
from charformer.errors import UserError
from charformer.files import write_text
from charformer.presets import PRESETS

Row = dict[str, Any]
Section = tuple[str, str]  # part of the bench, preset


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("report", __doc__, result=False)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file that a bench wrote with --json")
    parser.add_argument("--part", metavar="NAME", help="show only rows of this part: interleaved, grid, scaling, ...")
    parser.add_argument(
        "--markdown", type=writable_file, metavar="FILE", help="write the tables here (default: standard output)"
    )
    parser.add_chart("a chart")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    found = {name: results.read_result(path) for name, path in zip(_names(args.files), args.files, strict=True)}
    rows = {name: _timed(result["rows"], args.part) for name, result in found.items()}
    sections = list(dict.fromkeys(_section(row) for group in rows.values() for row in group))
    if not sections:
        raise UserError("these files have no rows with characters a second; name other files or another --part")
    text = markdown(found, rows, sections)
    if args.markdown:
        write_text(args.markdown, text)
    else:
        print(text, end="")
    if args.chart and all(result["bench"] == "convergence" for result in found.values()):
        lines = [curve for result in found.values() for curve in curves(result)]
        write_curves(args.chart, lines, baseline.ITS_LOSS, baseline_curve())
    elif args.chart:
        panels = [(_title(section), _bars(rows, section)) for section in sections]
        write_bars(args.chart, [panel for panel in panels if panel[1]])
    return 0


def markdown(contents: dict[str, Any], rows: dict[str, list[Row]], sections: list[Section]) -> str:
    """Return Markdown: where each result was taken, and a table for each section with a line for each variant.

    Args:
        contents: the result files by name. With only one, the tables also have ratio, MFU and memory.
        rows: the rows to show, by the same names.
    """
    lines = [f"- {name}: {_origin(result)}" for name, result in contents.items()]
    for section in sections:
        found = {
            name: {results.label(row): row for row in group if _section(row) == section} for name, group in rows.items()
        }
        labels = list(dict.fromkeys(label for group in found.values() for label in group))
        columns = ["variant", *(f"{name}, characters/s" for name in found)]
        one = next(iter(found.values())) if len(found) == 1 else None
        columns += ["x baseline", "MFU", "MiB"] if one else []
        lines += ["", f"### {_title(section)}", "", _line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
        for label in labels:
            cells = [label, *(_speed(group.get(label)) for group in found.values())]
            lines.append(_line(cells + (_details(one[label], one.get("baseline fp32")) if one else [])))
    return "\n".join(lines) + "\n"


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
    points = PUBLISHED["pretrain", "none"].items()
    line = [{"characters": step * characters, "val_loss": validation} for step, (_, validation) in points]
    return "the baseline's page, steps as coded", line


def _names(files: list[Path]) -> list[str]:
    """Return the files' names without their suffix, or their whole paths if two of those are the same."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def _timed(rows: list[Row], part: str | None) -> list[Row]:
    return [row for row in rows if row["chars_per_second"] and part in (None, row.get("part"))]


def _section(row: Row) -> Section:
    return str(row.get("part") or row.get("stage") or "training"), str(row["preset"])


def _title(section: Section) -> str:
    part, preset = section
    return f"{preset}, engines in turn" if part == "interleaved" else f"{part}, {preset}"


def _origin(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    noisy = "; a noisy machine" if result.get("noisy_machine") else ""
    return f"{result['bench']} on {where}; torch {versions.get('torch')}, commit {result['commit']}{noisy}"


def _speed(row: Row | None) -> str:
    if row is None:
        return ""
    speed = row["chars_per_second"]
    return f"{speed['p50']:,.0f} ({speed['p20']:,.0f} - {speed['p80']:,.0f})"


def _details(row: Row, yardstick: Row | None) -> list[str]:
    times = results.ratio(row, yardstick) if yardstick else None
    memory = row["peak_memory_bytes"]
    return [
        f"{times:.2f}" if times else "",
        f"{row['mfu']:.0%}" if row["mfu"] else "",
        f"{memory / 2**20:,.0f}" if memory else "",
    ]


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
        if _section(row) == section and row["freeze"] in (None, "none") and row["engine"] != "matmuls"
    ]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

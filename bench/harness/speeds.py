"""Print the speeds of the rows of results, in a table for each part of a bench and preset."""

from typing import Any

from bench.harness import results
from bench.harness.program import print_table

Row = dict[str, Any]
Section = tuple[str, str]  # part of the bench, preset


def section_of(row: Row) -> Section:
    """Return the table that a row belongs to."""
    return str(row.get("part") or row.get("stage") or "training"), str(row["preset"])


def sections_of(rows: dict[str, list[Row]]) -> list[Section]:
    """Return the tables of several results, in the order of their rows."""
    return list(dict.fromkeys(section_of(row) for group in rows.values() for row in group))


def title(section: Section) -> str:
    """Return the title of a table or a chart."""
    part, preset = section
    return f"{preset}, engines in turn" if part == "interleaved" else f"{part}, {preset}"


def print_speeds(rows: dict[str, list[Row]]) -> None:
    """Print the characters a second of results by name, side by side.

    With only one result, the tables also have ratios to the baseline's way, MFU and memory.
    """
    for section in sections_of(rows):
        shown: dict[str, Row] = {}
        columns = {"variant": "{variant}"}
        for number, (name, group) in enumerate(rows.items()):
            speed = f"speed{number}"
            columns[f"{name}, characters/s"] = f"{{{speed}[p50]:,.0f}} ({{{speed}[p20]:,.0f}} - {{{speed}[p80]:,.0f}})"
            for row in (row for row in group if section_of(row) == section):
                label = results.label(row)
                shown.setdefault(label, row | {"variant": label})[speed] = row["chars_per_second"]
        if len(rows) == 1:
            yardstick = shown.get("baseline fp32", {})
            for row in shown.values():
                row |= {"ratio": results.ratio(row, yardstick), "MiB": (row["peak_memory_bytes"] or 0) / 2**20 or None}
            columns |= {"x baseline": "{ratio:.2f}", "MFU": "{mfu:.0%}", "MiB": "{MiB:,.0f}"}
        print(f"\n### {title(section)}")
        print_table(None, shown.values(), columns)

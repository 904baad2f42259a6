"""Test the table and the stopwatch that the benches share."""

import time

import pytest

from bench.harness.program import print_table
from bench.harness.stopwatch import Stopwatch


def test_a_table_is_markdown_with_empty_cells_where_values_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "[bold]", "speed": {"p50": 1234.5}, "share": 0.25, "count": 3},
        {"name": "b", "speed": None, "share": None, "count": None},
    ]
    columns = {"name": "{name}", "a second": "{speed[p50]:,.0f}", "share": "{share:.0%}", "n": "{count:}"}
    print_table("title", rows, columns | {"never": "{nothing:.1f}"})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "",
        "| name   | a second | share |   n | never |",
        "| ------ | -------: | ----: | --: | ----: |",
        "| [bold] |    1,234 |   25% |   3 |       |",
        "| b      |          |       |     |       |",
    ]


def test_a_part_excludes_the_parts_within_it() -> None:
    watch = Stopwatch()

    @watch.part("inner")
    def inner() -> None:
        time.sleep(0.05)

    began = time.perf_counter()
    with watch.part("outer"):
        time.sleep(0.02)
        inner()
        watch.begin("inner")
        watch.end()
        with pytest.raises(ValueError, match="ends its part"), watch.part("third"):
            raise ValueError("ends its part")
        time.sleep(0.02)
    whole = time.perf_counter() - began
    assert sum(watch.seconds.values()) == pytest.approx(whole, abs=0.02)
    assert watch.seconds["inner"] >= 0.05
    assert 0.04 <= watch.seconds["outer"] <= whole - 0.05

"""Check that quoted results exist, that committed results are quoted or archived, and that they can be read."""

import csv
import json
import re
from pathlib import Path

from bench.harness.results import read_result, to_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def quoted() -> dict[str, set[Path]]:
    """Return the result files that documents quote, by the name or the pattern in the quotation."""
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    return {name: set(RESULTS.glob(name)) for name in re.findall(r"bench/results/([\w./*-]+\.(?:json|csv))", text)}


def test_each_result_that_a_document_quotes_is_there() -> None:
    assert [name for name, files in quoted().items() if not files] == []


def test_each_committed_result_is_quoted_or_archived() -> None:
    named = set().union(*quoted().values())
    assert [path.name for path in RESULTS.iterdir() if path.is_file() and path not in named] == []


def test_each_result_has_a_row_a_line_and_says_what_it_was_taken_with() -> None:
    for path in RESULTS.rglob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        assert len(path.read_text("utf-8").splitlines()) <= len(content["rows"]) + 40, path
        assert content["versions"]["torch"], path
        assert not re.search(r'": "(/|[A-Z]:\\\\)', path.read_text("utf-8")), f"{path} names a place on one machine"
        if "schema" in content and "operator" not in content["rows"][0]:
            read_result(path)
            assert path.read_text("utf-8") == to_text(content), path
    for path in RESULTS.rglob("*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(row["triton"] and row["torch"] and int(row["registers"]) for row in rows), path

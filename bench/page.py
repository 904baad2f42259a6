"""Measure the page of a run in a real Chromium: its size, its speed, and how far its text agrees with the command's.

    python -m bench.page --run runs/pretrain --json bench/results/page.json

It opens the page from a file, and needs Chromium and the package websockets (requirements/dev.txt).
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import results
from bench.harness.chromium import EXECUTABLE, Tab, chromium
from bench.harness.program import BenchParser, execute, keep, print_table, run_config
from charformer.api import load
from charformer.data.cached import find_cached
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from export.exporter import export
from export.html import write_page

PRECISIONS = ("int8", "fp32", "int4")
READY = "['hidden', 'disabled'].every((state) => document.getElementById('write')?.[state] === false)"


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("page", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a trained run whose text is cached")
    parser.add_argument(
        "--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS), help="(default: all three)"
    )
    parser.add_count("--texts", 12, "texts of each page, each with a seed of its own")
    parser.add_count("--characters", 1000, "characters of each text")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if EXECUTABLE is None:
        raise UserError("Chromium is not on this machine's PATH; install it")
    run = RunDir(args.run)
    rows = [_measure(run, precision, args.texts, args.characters) for precision in args.precision]
    columns = {"precision": "{precision}", "page bytes": "{page_bytes:,}", "model bytes": "{model_bytes:,}"}
    columns |= {"first character, ms": "{first_character_ms[p50]:,.0f}", "characters/s": "{chars_per_second[p50]:,.0f}"}
    print_table(None, rows, columns | {"first differences": "{first_differences}"})
    keep(args, run_config(run) | {"texts": args.texts, "characters": args.characters}, rows)
    return 0


def _measure(run: RunDir, precision: str, texts: int, characters: int) -> dict[str, Any]:
    """Write one page, open it for each text, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        page = write_page(
            run, export(run, file, precision, False, find_cached(run.read_section("corpus"))), Path(folder) / "p.html"
        )
        model = load(file, provider="cpu")
        wanted = ["\n" + model.generate("", max_new_tokens=characters, seed=seed) for seed in range(texts)]
        first, speeds, differences = [], [], []
        with chromium(Path(folder) / "profile") as tab:
            browser = str(tab.call("Browser.getVersion")["product"])
            for seed, text in enumerate(wanted):
                tab.open(page.path.as_uri())
                tab.wait(READY)
                first.append(float(tab.run("performance.getEntriesByName('first character')[0].startTime")))
                found, speed = _page_text(tab, seed, characters)
                speeds.append(speed)
                pairs = enumerate(zip(found, text, strict=True))
                differences.append(next((place for place, (one, other) in pairs if one != other), None))
    return results.row(
        engine="charformer-page",
        preset=run.read_config().get("preset"),
        precision=precision,
        batch=1,
        context=run.read_shape()[0].block_size,
        threads=1,
        chars_per_second=results.percentiles(speeds),
        samples=texts,
        browser=browser,
        page_bytes=page.bytes,
        model_bytes=page.model_bytes,
        runtime_bytes=page.runtime_bytes,
        first_character_ms=results.percentiles(first),
        first_differences=differences,
    )


def _page_text(tab: Tab, seed: int, characters: int) -> tuple[str, float]:
    """Return the text that the page writes, and the characters a second that it reports."""
    for name, value in (("seed", seed), ("length", characters)):
        tab.run(f"document.getElementById('{name}').value = {value}")
    tab.run("document.getElementById('write').click()")
    tab.wait(READY)
    said = re.search(r" at ([\d,]+) a second", tab.run("document.getElementById('status').textContent"))
    assert said is not None, "the page says its speed"
    return str(tab.run("document.getElementById('text').textContent")), float(said[1].replace(",", ""))


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure how much disk each kind of installation takes, in a virtual environment of its own, and how long it takes.

    python -m bench.installation --json bench/results/installation.json

The seconds include downloads, so they depend on the registry as much as on the machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.harness import results
from bench.harness.interleave import ROOT
from bench.harness.program import BenchParser, execute, keep, print_table
from charformer.errors import UserError

# The commands of docs/usage.md for sampling alone, and those of the Makefile.
KINDS = {
    "sampling": (
        "{python} -m venv {venv}",
        "{venv}/bin/pip install --quiet -c constraints.txt -r requirements/sampling.txt",
        "{venv}/bin/pip install --quiet --no-deps -e .",
    ),
    "cpu": ("make VENV={venv} GPU= {venv}/.installed",),
    "cpu with tests": ("make VENV={venv} GPU= {venv}/.tools",),
    "gpu": ("make VENV={venv} GPU=yes {venv}/.installed",),
}


def main(argv: list[str] | None = None) -> int:
    return execute(BenchParser("installation", __doc__), argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows = []
    for kind, commands in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            for command in commands:
                words = [word.format(python=sys.executable, venv=f"{folder}/venv") for word in command.split()]
                done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8")
                if done.returncode:
                    raise UserError(f"{words[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
            seconds = time.perf_counter() - began
            rows.append(results.row(engine="charformer", kind=kind, seconds=seconds, **_sizes(Path(folder))))
    print_table(None, rows, {"installation": "{kind}", "bytes": "{disk_bytes:,}", "seconds": "{seconds:.0f}"})
    keep(args, {"kinds": list(KINDS), "cpu_torch_index": "whichever pip is set up with"}, rows)
    return 0


def _sizes(folder: Path) -> dict[str, Any]:
    """Return the bytes on disk of all files, as ``du`` counts them, and of the five largest packages, in MB."""
    packages: Counter[str] = Counter()
    for path in folder.rglob("*"):
        below = path.as_posix().partition("/site-packages/")[2]
        packages[below.partition("/")[0]] += 512 * path.lstat().st_blocks
    total = packages.total()
    del packages[""]
    return {"disk_bytes": total, "largest_mb": {name: round(size / 1e6) for name, size in packages.most_common(5)}}


if __name__ == "__main__":
    raise SystemExit(main())

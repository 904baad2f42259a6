"""Measure how much disk each kind of installation takes, in a virtual environment of its own, and how long it takes.

    python -m bench.installation --json bench/results/installation.json

The seconds include downloads, so they depend on the registry as much as on the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, show, table
from charformer.errors import UserError

ROOT = Path(__file__).parents[1]
SAMPLING = ("pip install -c constraints.txt -r requirements/sampling.txt", "pip install --no-deps -e .")
MAKE = {"cpu": ("", ".installed"), "cpu with tests": ("", ".tools"), "gpu": ("yes", ".installed")}
KINDS = ("sampling", *MAKE)


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("installation", __doc__)
    parser.add_argument(
        "--kind", choices=KINDS, nargs="+", default=list(KINDS), help="kinds of installation (default: all)"
    )
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows = []
    for kind in args.kind:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            _install(kind, Path(folder) / "venv")
            seconds = time.perf_counter() - began
            rows.append(results.row(engine="charformer", kind=kind, seconds=seconds, **_sizes(Path(folder))))
    shown = table(None, ["installation"], ["MB", "seconds"])
    for row in rows:
        shown.add_row(row["kind"], f"{row['disk_bytes'] / 1e6:,.0f}", f"{row['seconds']:.0f}")
    show(shown)
    keep(args, {"kinds": args.kind, "cpu_torch_index": "whichever pip is set up with"}, rows)
    return 0


def _install(kind: str, venv: Path) -> None:
    """Create ``venv`` by the commands of the Makefile, or by those of docs/usage.md for sampling alone."""
    if kind in MAKE:
        gpu, stamp = MAKE[kind]
        _call(["make", f"VENV={venv}", f"GPU={gpu}", str(venv / stamp)])
        return
    _call([sys.executable, "-m", "venv", str(venv)])
    for command in SAMPLING:
        _call([str(venv / "bin" / "pip"), *command.split()[1:], "--quiet"])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise UserError(f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")


def _sizes(folder: Path) -> dict[str, object]:
    """Return the bytes on disk of all files, as ``du`` counts them, and of the largest packages, in MB."""
    packages: dict[str, int] = {}
    total = 0
    for parent, _, names in os.walk(folder):
        blocks = sum(512 * os.lstat(os.path.join(parent, name)).st_blocks for name in names)  # noqa: PTH118
        total += blocks
        _, _, below = parent.partition("/site-packages/")
        package = below.partition("/")[0]
        packages[package] = packages.get(package, 0) + blocks
    largest = sorted((item for item in packages.items() if item[0]), key=lambda item: -item[1])[:5]
    return {"disk_bytes": total, "largest_mb": {name: round(size / 1e6) for name, size in largest}}


if __name__ == "__main__":
    raise SystemExit(main())

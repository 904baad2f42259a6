"""Measure how much a busy program beside a training slows it down, for several ways in which OpenMP's threads wait.

    python -m bench.busy --json bench/results/busy.json

Between two parallel regions of a step a thread spins for a while before it sleeps. When the training has the machine to
itself, spinning saves the time of waking the thread; beside another program it occupies the core that the step is
waiting for. Each setting trains in turn, alone and beside one process that counts, for several rounds. A round's speed
is the median over its evaluations except the first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, show, table
from charformer.errors import UserError
from charformer.runs.folder import RunDir

FLAGS = ("--eval-batches", "1")
COUNT = "while True: pass"


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("busy", __doc__)
    parser.add_presets("nano", several=False)
    parser.add_count("--steps", 40, "steps of a round")
    parser.add_count("--rounds", 3, "rounds of each setting")
    parser.add_dtype()
    parser.add_argument(
        "--spins",
        nargs="+",
        metavar="N",
        default=["as it is", "300000", "0"],
        help="how often a thread spins before it sleeps (GOMP_SPINCOUNT); 'as it is' leaves that to charformer-train, "
        "300000 is GNU OpenMP's own value (default: 'as it is' 300000 0)",
    )
    parser.add_data("--data", "tiny-shakespeare")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    speeds: dict[tuple[str, bool], list[float]] = {(s, busy): [] for s in args.spins for busy in (False, True)}
    for _ in range(args.rounds):
        for (spins, is_busy), found in speeds.items():
            with busy_process() if is_busy else nullcontext():
                found.append(_speed(args, spins))
    rows = [
        results.row(
            engine="charformer",
            preset=args.preset,
            precision=args.dtype,
            spins=spins,
            busy=is_busy,
            chars_per_second=results.percentiles(found),
            samples=len(found),
            turns=found,
        )
        for (spins, is_busy), found in speeds.items()
    ]
    shown = table(None, ["spins"], ["alone", "beside a busy process", "share", "alone, of the last"])
    alone, beside = rows[0::2], rows[1::2]
    for row, busy in zip(alone, beside, strict=True):
        medians = [f"{each['chars_per_second']['p50']:,.0f}" for each in (row, busy)]
        shown.add_row(row["spins"], *medians, f"{results.ratio(busy, row):.2f}", f"{results.ratio(row, alone[-1]):.2f}")
    show(shown)
    keep(args, {name: getattr(args, name) for name in ("preset", "steps", "rounds", "dtype", "data")}, rows)
    return 0


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy with another process for the length of the context."""
    with subprocess.Popen([sys.executable, "-c", COUNT]) as process:
        try:
            yield
        finally:
            process.kill()


def _speed(args: argparse.Namespace, spins: str) -> float:
    """Return the characters a second of one training. Raise UserError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        flags = ["--preset", args.preset, "--steps", str(args.steps), "--data", args.data, "--dtype", args.dtype]
        flags += ["--device", "cpu", "--eval-interval", str(max(1, args.steps // 4)), *FLAGS, "--out", str(run.path)]
        environment = os.environ | ({} if spins == "as it is" else {"GOMP_SPINCOUNT": spins})
        command = [sys.executable, "-m", "charformer.commands.train", *flags]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
        if done.returncode:
            raise UserError(f"a training failed: {done.stderr.strip()}")
        speeds = [row["chars_per_second"] for row in run.read_metrics() if row["chars_per_second"]]
    return float(np.median(speeds[1:] or speeds))


if __name__ == "__main__":
    sys.exit(main())

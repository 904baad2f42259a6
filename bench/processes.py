"""Compare one process of N threads with N processes of one thread: characters a second of the same training.

    python -m bench.processes --processes 2 --json bench/results/processes.json

`charformer-train` runs by itself and through torchrun, in turn, for several rounds. A round's speed is the median over
its evaluations except the first, whose steps warm up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, show, table
from charformer.errors import UserError
from charformer.runs.folder import RunDir

FLAGS = ("--eval-interval", "20", "--eval-batches", "1")


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("processes", __doc__)
    parser.add_count("--processes", 2, "processes that train one model")
    parser.add_presets("nano", "fast")
    parser.add_count("--steps", 100, "steps of a round")
    parser.add_count("--rounds", 3, "rounds of each")
    parser.add_data("--data", "tiny-shakespeare")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows = []
    found = table(None, ["preset"], ["processes", "threads each", "characters/s", "x one process"])
    for preset in args.preset:
        flags = ["--preset", preset, "--steps", str(args.steps), "--data", args.data, *FLAGS]
        turns: dict[int, list[float]] = {1: [], args.processes: []}
        for _ in range(args.rounds):
            for processes, speeds in turns.items():
                speeds.append(_speed(flags, processes, args.processes // processes))
        of_preset = [
            results.row(
                engine="charformer",
                preset=preset,
                threads=args.processes // processes,
                processes=processes,
                chars_per_second=results.percentiles(speeds),
                samples=len(speeds),
                turns=speeds,
            )
            for processes, speeds in turns.items()
        ]
        for row in of_preset:
            speed, ratio = row["chars_per_second"]["p50"], results.ratio(row, of_preset[0])
            found.add_row(preset, str(row["processes"]), str(row["threads"]), f"{speed:,.0f}", f"{ratio:.2f}")
        rows += of_preset
    show(found)
    keep(args, {name: getattr(args, name) for name in ("processes", "preset", "steps", "rounds", "data")}, rows)
    return 0


def _speed(flags: list[str], processes: int, threads: int) -> float:
    """Return the characters a second of a training by ``processes`` of ``threads`` each."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        command = [sys.executable, *launch, "-m", "charformer.commands.train", *flags, "--out", str(run.path)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
        if done.returncode:
            # torchrun's own lines say only that a process failed
            reasons = [line for line in done.stderr.splitlines() if line.startswith("charformer-train:")]
            raise UserError(f"a training failed: {reasons[0] if reasons else done.returncode}")
        speeds = [row["chars_per_second"] for row in run.read_metrics() if row["chars_per_second"]]
    return float(np.median(speeds[1:] or speeds))


if __name__ == "__main__":
    sys.exit(main())

"""Measure a GPU that is available for a few minutes: accuracy, steps, trainings, sampling and op times in one program.

    python -m bench.gpu --out bench/results/gpu --data input.txt
    python -m bench.gpu --out visit --data input.txt --stages facts steps --budget 100

Without a GPU, or with --device cpu, it rehearses every stage on small shapes (docs/kernels.md).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import results
from bench.harness.interleave import Worker, WorkerError
from bench.harness.program import BenchParser, execute
from charformer.data import corpus as corpora
from charformer.device import choose_device
from charformer.files import make_folder
from charformer.presets import PRESETS

# The seconds that each stage should take on an H100.
STAGES = {
    "facts": 10,
    "compiling": 40,
    "accuracy": 30,
    "steps": 80,
    "training": 70,
    "sampling": 20,
    "op_times": 25,
    "memcheck": 75,
    "compiled": 60,
    "block_sizes": 20,
    "tests": 50,
}
BUDGET = 480.0
MAX_OVER = {"cuda": 1.5, "cpu": 10.0}  # times those seconds end a stage; a larger budget raises this in proportion
MIN_SHARE = 0.5  # of a stage's seconds must be left, or the stage is not started


def main(argv: list[str] | None = None) -> int:
    """Run the stages; return the exit code, which is 1 if a stage failed."""
    parser = BenchParser("gpu", __doc__, result=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--data", required=True, metavar="FILE|NAME", help="text to train on")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="time for all stages (default: %(default)g)"
    )
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=list(STAGES), help="(default: all)")
    parser.add_device()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    device = choose_device(args.device)
    corpora.load(args.data).require(PRESETS["baseline"].model.block_size, "take a longer text")
    make_folder(args.out)
    data = str(Path(args.data).absolute()) if Path(args.data).exists() else args.data  # a worker runs in another folder
    options = {"device": device.type, "out": str(args.out.absolute()), "data": data}
    allowance = MAX_OVER[device.type] * max(1.0, args.budget / BUDGET)
    config = {"budget": args.budget, "stages": args.stages, "device": device.type, "data": Path(args.data).name}
    visited: list[dict[str, Any]] = []
    worker: Worker | None = None
    try:
        for name in args.stages:
            left = began + args.budget - time.monotonic()
            if left < MIN_SHARE * STAGES[name]:
                found = {"status": "left out", "line": f"does not fit into the {max(0.0, left):.0f} s that are left"}
            else:
                worker = worker or Worker("bench.gpu_stages.worker", options)
                found = _ask(worker, name, min(left, allowance * STAGES[name]))
                if found["status"] == "failed":
                    worker.close()
                    worker = None
            visited.append({"stage": name, **found})
            print(f"{name:12}{found['status']:9}{found.get('seconds', 0.0):6.1f} s  {found['line']}", flush=True)
            rows = [results.row(**stage) for stage in visited]
            results.write_result(args.out / "summary.json", results.result("gpu", config, rows))
    finally:
        if worker is not None:
            worker.close()
    return int(any(stage["status"] == "failed" for stage in visited))


def _ask(worker: Worker, name: str, seconds: float) -> dict[str, Any]:
    """Run a stage for at most ``seconds``; return its status, seconds and last line."""
    began = time.monotonic()
    try:
        answer, status = worker.ask(f"{name} {seconds:.1f}", seconds), "done"
    except WorkerError as error:
        answer, status = {"line": str(error)}, "failed"
    return {"status": status, "seconds": time.monotonic() - began, **answer}


if __name__ == "__main__":
    sys.exit(main())

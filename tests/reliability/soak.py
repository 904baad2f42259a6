"""Watch the memory and the files of a long training that evaluates, saves and is sampled from all the time.

    python -m tests.reliability.soak --minutes 30 --json bench/results/soak.json

`charformer-train` runs in a process of its own and is observed from outside: its resident memory and open files every
few seconds, and `charformer-sample` from its folder once a minute. At the end it gets a SIGTERM. The slope is that of a
line fitted to the memory after the first tenth of the time. Linux only.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.harness import results
from charformer.commands.common import Parser, execute
from charformer.data import sources
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from kernels.checks.cli import writable_file

FLAGS = "--preset nano --steps 1000000 --eval-interval 20 --save-interval 7 --eval-batches 1"
EVERY = 2.0  # seconds between two observations
SAMPLE_EVERY = 60.0  # seconds between two samplings, or less in a soak of a few minutes
MIN_OBSERVATIONS = 10  # the fewest observations for a slope
MAX_SLOPE = 2**20  # bytes a minute; a leak of 1 MiB at each evaluation would be some fifteen times that


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code, which is 1 if memory grows or files remain."""
    parser = Parser("tests.reliability.soak", __doc__.partition("\n")[0], "")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="X", help="(default: 30)")
    parser.add_argument("--flags", default=FLAGS, help="flags of charformer-train (default: %(default)s)")
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write the result to this file")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if sys.platform != "linux":
        raise UserError("this bench reads /proc, which is Linux's")
    with tempfile.TemporaryDirectory() as folder:
        found = _soak(Path(folder), args.flags.split(), 60 * args.minutes)
    row = results.row(engine="charformer", preset="nano", precision="auto", threads=None, **found)
    Console().print_json(json.dumps(found))
    if args.json:
        config = {"minutes": args.minutes, "course": args.flags, "seconds_between": EVERY}
        results.write_result(args.json, results.result("soak", config, [row]))
    is_fine = found["exit_code"] == 128 + signal.SIGTERM and not found["left_behind"] and not found["failed_samples"]
    return int(not is_fine or found["bytes_a_minute"] > MAX_SLOPE)


def _soak(folder: Path, flags: list[str], seconds: float) -> dict[str, Any]:
    """Train in ``folder`` for ``seconds``; return the observations, and the files that remain."""
    data, run = folder / "text.txt", RunDir(folder / "run")
    data.write_text(sources.python_docs()[:200_000], encoding="utf-8", newline="")
    command = [sys.executable, "-m", "charformer.commands.train", *flags, "--data", str(data), "--out", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8") as process:
        try:
            times, resident, files, samples = _watch(process, run, seconds)
            ended_early = process.poll() is not None
            process.terminate()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    if ended_early:
        raise UserError(f"the training ended early: {errors.strip() or process.returncode}")
    if len(times) < MIN_OBSERVATIONS:
        raise UserError(f"{len(times)} looks at the training are too few to tell; take more --minutes")
    late = slice(len(times) // 10, None)
    known = {path.name for name, path in vars(run).items() if name not in ("path", "lock")}
    rows = run.read_metrics()
    return {
        "exit_code": process.returncode,
        "minutes": times[-1] / 60,
        "bytes_a_minute": float(np.polyfit(np.array(times[late]) / 60, resident[late], 1)[0]),
        "looks": len(resident),
        "first_bytes": float(np.median(resident[late][:20])),
        "last_bytes": float(np.median(resident[-20:])),
        "most_open_files": [max(files[: len(files) // 2]), max(files[len(files) // 2 :])],
        "steps": rows[-1]["step"],
        "evaluations": len(rows),
        "samples": len(samples),
        "failed_samples": [error for error in samples if error],
        "left_behind": sorted({path.name for path in run.path.iterdir()} - known),
    }


def _watch(
    process: "subprocess.Popen[str]", run: RunDir, seconds: float
) -> tuple[list[float], list[int], list[int], list[str]]:
    """Return the times, resident bytes and open files of each observation, and the errors of each sampling."""
    times: list[float] = []
    resident: list[int] = []
    files: list[int] = []
    samples: list[str] = []
    about = Path(f"/proc/{process.pid}")
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("soaking", total=seconds)
        began = time.monotonic()
        while process.poll() is None and (now := time.monotonic() - began) < seconds:
            progress.update(task, completed=now)
            if run.weights.is_file():  # it has begun
                size = (about / "status").read_text("utf-8").partition("VmRSS:")[2].split()[:1]
                if not size:  # it has just ended
                    break
                times.append(now)
                resident.append(int(size[0]) * 1024)
                files.append(len(list((about / "fd").iterdir())))
                if now >= min(SAMPLE_EVERY, seconds / 2) * (len(samples) + 1):
                    samples.append(_sample(run))
            time.sleep(EVERY)
    return times, resident, files, samples


def _sample(run: RunDir) -> str:
    """Sample from the run in its present state; return the error, if any."""
    command = [sys.executable, "-m", "charformer.commands.sample", "--run", str(run.path), "--max-new-tokens", "200"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    return "" if done.returncode == 0 and len(done.stdout) >= 200 else done.stderr or "no text"


if __name__ == "__main__":
    sys.exit(main())

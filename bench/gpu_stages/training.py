"""Train `fast` with the real command, with a cold and a warm cache of kernels, and kill and resume a run."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.engines.baseline import ITS_LOSS
from bench.gpu_stages.visit import Row, Stage, Visit
from bench.harness.interleave import KILLED
from charformer.runs.folder import RunDir

# Without its prior `fast` needs more steps than it has: docs/training.md gives these for the baseline's loss.
FAST = "--preset fast --ngram-order 0 --steps 560"
SMALL = "--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --batch-size 2"
SMALL += " --steps 24 --eval-interval 4 --eval-batches 1"


def run(visit: Visit) -> Stage:
    """Yield a row for each training. Raise RuntimeError if one fails, or if resuming leads to another loss."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [trained(visit, "cold", TRITON_CACHE_DIR=str(Path(folder) / "cache"))]
        yield rows[0]
    for number in (1, 2) if visit.on_gpu else ():
        rows.append(trained(visit, f"warm {number}"))
        yield rows[-1]
    killed = kill_one(visit)
    resumed = trained(visit, "killed", "--resume") | killed
    equal = resumed["val_loss"] == rows[-1]["val_loss"]
    yield resumed | {"name": "killed and resumed", "equal_to_the_whole_run": equal}
    if not equal:
        raise RuntimeError(f"the resumed run's loss is {resumed['val_loss']}, the whole run's {rows[-1]['val_loss']}")
    best = min(rows[1:] or rows, key=lambda row: float(row["train_seconds"]))
    reached = "reached" if best["val_loss"] <= ITS_LOSS else "not reached"
    return f"{ITS_LOSS} {reached}: {best['val_loss']:.4f} in {best['train_seconds']:.2f} s of training, warm"


def command(visit: Visit, name: str, *flags: str) -> list[str]:
    """Return the command of a training in a folder of its own or, with --resume in ``flags``, of its continuation."""
    if "--resume" not in flags:
        flags = (*flags, *FAST.split(), "--data", visit.data, "--overwrite")
        flags += ("--device", visit.device.type, *(() if visit.on_gpu else SMALL.split()))
    out = str(visit.out / "runs" / name.replace(" ", "-"))
    return [sys.executable, "-m", "charformer.commands.train", *flags, "--out", out, "--json"]


def trained(visit: Visit, name: str, *flags: str, **environment: str) -> Row:
    """Train, and return the row. Raise RuntimeError if the training fails or takes too long."""
    began = time.monotonic()
    done = visit.run(command(visit, name, *flags), **environment)
    if done.returncode:
        raise RuntimeError(f"a training failed: {(done.stderr.strip() or 'silently').splitlines()[-1]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    about = {"part": "training", "engine": "charformer", "preset": "fast", "name": name}
    kept = {key: value for key, value in summary.items() if key not in ("out", "corpus")}
    return about | {"wall_seconds": time.monotonic() - began} | kept


def kill_one(visit: Visit) -> Row:
    """Start a training and kill it after its second evaluation.

    Return whether it was still running, and the step of its last evaluation.
    """
    folder = RunDir(visit.out / "runs" / "killed")
    with subprocess.Popen(command(visit, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and visit.left > 0:
            if folder.metrics.is_file() and folder.state.is_file() and len(folder.read_metrics()) >= 2:
                break
            time.sleep(0.005)
        process.kill()
    was_killed = process.returncode == (KILLED if os.name == "posix" else 1)
    step = folder.read_metrics()[-1]["step"] if folder.metrics.is_file() else None
    return {"killed": was_killed, "killed_after_step": step}

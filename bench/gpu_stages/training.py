"""Train `fast` with the real command, with a cold and a warm cache of kernels, and kill and resume a run."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.engines.baseline import ITS_LOSS
from bench.gpu_stages.visit import Row, Stage, Visit
from charformer.runs.folder import RunDir

SMALL = "--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --batch-size 2"
SMALL += " --steps 24 --eval-interval 4 --eval-batches 1"


def run(visit: Visit) -> Stage:
    """Yield a row for each training. Raise RuntimeError if one fails, or if resuming leads to another loss."""
    with tempfile.TemporaryDirectory() as folder:
        cold = Path(folder) / "cache"
        rows = [trained(visit, "cold", {"TRITON_CACHE_DIR": str(cold)})]
        yield rows[0]
        for number in (1, 2) if visit.on_gpu else ():
            rows.append(trained(visit, f"warm {number}", {}))
            yield rows[-1]
        resumed = killed_and_resumed(visit)
        equal = resumed["val_loss"] == rows[-1]["val_loss"]
        yield resumed | {"equal_to_the_whole_run": equal}
    if not equal:
        raise RuntimeError(f"the resumed run's loss is {resumed['val_loss']}, the whole run's {rows[-1]['val_loss']}")
    best = min(rows[1:] or rows, key=lambda row: float(row["train_seconds"]))
    reached = "reached" if best["val_loss"] <= ITS_LOSS else "not reached"
    return f"{ITS_LOSS} {reached}: {best['val_loss']:.4f} in {best['train_seconds']:.2f} s of training, warm"


def trained(visit: Visit, name: str, environment: dict[str, str]) -> Row:
    """Train in a folder named ``name``, and return the row."""
    began = time.monotonic()
    summary = finished(start(visit, name, [], environment), visit)
    return row(name, summary, time.monotonic() - began)


def killed_and_resumed(visit: Visit) -> Row:
    """Start a training, kill it after its second evaluation, resume it, and return the row."""
    folder = RunDir(visit.out / "runs" / "killed")
    process = start(visit, "killed", [], {})
    while process.poll() is None and visit.left > 0:
        if folder.metrics.is_file() and folder.state.is_file() and len(folder.read_metrics()) >= 2:
            break
        time.sleep(0.005)
    process.kill()
    process.communicate()
    was_killed = process.returncode in (-getattr(signal, "SIGKILL", 9), 1)
    step = folder.read_metrics()[-1]["step"] if folder.metrics.is_file() else None
    began = time.monotonic()
    summary = finished(start(visit, "killed", ["--resume"], {}), visit)
    return row("killed and resumed", summary, time.monotonic() - began) | {"killed": was_killed, "killed_behind": step}


def start(visit: Visit, name: str, flags: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a training in a folder of its own, or with --resume in ``flags`` continue it; return the process."""
    out = str(visit.out / "runs" / name.replace(" ", "-"))
    if "--resume" not in flags:
        flags = [*flags, "--preset", "fast", "--data", visit.data, "--device", visit.device.type, "--overwrite"]
        flags += ["--ngram-order", "0"]
        flags += [] if visit.on_gpu else SMALL.split()
    command = [sys.executable, "-m", "charformer.commands.train", *flags, "--out", out, "--json"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | environment,
    )


def finished(process: "subprocess.Popen[str]", visit: Visit) -> dict[str, Any]:
    """Wait for the training to end, and return its summary. Raise RuntimeError if it fails or takes too long."""
    try:
        output, errors = process.communicate(timeout=max(1.0, visit.left))
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise RuntimeError("a training took longer than the stage's time") from error
    if process.returncode:
        raise RuntimeError(f"a training failed: {errors.strip().splitlines()[-1] if errors.strip() else 'silently'}")
    summary: dict[str, Any] = json.loads(output.splitlines()[-1])
    return summary


def row(name: str, summary: dict[str, Any], wall: float) -> Row:
    """Return the row of a training from its summary and the seconds of the whole process."""
    kept = {key: value for key, value in summary.items() if key not in ("out", "corpus")}
    return {"part": "training", "engine": "charformer", "preset": "fast", "name": name, "wall_seconds": wall, **kept}

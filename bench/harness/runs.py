"""Run charformer-train in a process of its own, and describe its run by a row of a result."""

import json
import os
import shlex
import subprocess
import sys
from typing import Any

from bench.harness import results
from bench.harness.program import text_config
from charformer.errors import UserError
from charformer.files import make_folder, write_text
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir

Row = dict[str, Any]


def train(run: RunDir, preset: str, flags: list[str]) -> Row:
    """Train ``preset`` in ``run`` with ``flags`` of charformer-train, or finish the training that began there.

    Return its row with its ``summary``. The settings are kept beside the folder of the run.

    Raise UserError if the training fails, or if the folder holds one that began with other flags or another preset.
    """
    asked, kept = f"{PRESETS[preset]} {shlex.join(flags)}\n", run.path.with_name(f"{run.path.name}.settings")
    began = run.state.is_file()
    command = ["charformer.commands.train", "--json", "--out", str(run.path)]
    if not began:
        make_folder(kept.parent)
        write_text(kept, asked)
        command += ["--preset", preset, *flags, "--overwrite"]
    elif kept.is_file() and kept.read_text("utf-8") == asked:
        command += ["--resume"]
    else:
        raise UserError(f"the run in {run.path} was trained with other settings; choose another folder with --runs")
    summary = run_process(command)
    del summary["out"]
    return training_row(
        run,
        peak_memory_bytes=None if began else summary["peak_memory_bytes"],  # a resumed process saw only its own part
        learning_rate=run.read_section("training")["learning_rate"],
        summary=summary | {"corpus": text_config(summary["corpus"])},
    )


def run_process(arguments: list[str], **environment: str) -> dict[str, Any]:
    """Run ``python -m ...`` in a process of its own, and print its output on stderr as it arrives.

    Return the JSON document in the last line of its output. Raise UserError if it fails, which it has then explained.
    """
    command, line = [sys.executable, "-m", *arguments], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise UserError(f"{arguments[0]} ended with exit code {process.returncode}")
    return json.loads(line)


def speeds(run: RunDir) -> list[float]:
    """Return the characters a second between evaluations, without the first value, in which steps warm up."""
    found = [point["chars_per_second"] for point in run.read_metrics() if point["chars_per_second"]]
    return found[1:] or found


def training_row(run: RunDir, **more: Any) -> Row:
    """Return the row of a training, with ``more``; its samples are its ``speeds``."""
    config, samples = run.read_config(), speeds(run)
    given = {
        "engine": "charformer",
        "stage": config["stage"],
        "preset": config["preset"],
        "precision": config["machine"]["dtype"],
        "batch": config["training"]["batch_size"],
        "context": config["model"]["block_size"],
        "threads": config["machine"]["threads"],
        "freeze": config["freeze"],
        "chars_per_second": results.percentiles(samples) if samples else None,
        "samples": len(samples),
        "curve": run.read_metrics(),
    }
    return results.row(**given | more)


def reached(row: Row, target: float) -> str:
    """Return the characters and seconds of a row's first evaluation at or below the loss ``target``, or "never"."""
    there = next((point for point in row["curve"] if point["val_loss"] <= target), None)
    return f"{there['characters'] / 1e6:.2f} M, {there['seconds']:.0f} s" if there else "never"

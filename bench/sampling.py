"""Measure how fast our engines sample, against the baseline's way, CTranslate2 and onnxruntime-genai.

    python -m bench.sampling                      random weights of the baseline's size
    python -m bench.sampling --run runs/pretrain  a trained model, with speculative sampling

CTranslate2 and onnxruntime-genai live in an environment of their own, which `make peers` creates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import onnx

from bench.engines.baseline import VOCAB_SIZE
from bench.engines.sampling_models import random_run, write_for_peers
from bench.harness import results
from bench.harness.interleave import ROOT
from bench.harness.program import BenchParser, execute, keep, print_table
from bench.harness.sampling import THREADS, SamplingEntry, interleave_samplers, measure_alone
from bench.harness.speeds import print_speeds
from charformer.data.cached import find_cached
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.ui.console import PlainConsole, progress_bar
from export.exporter import export

SHOWN = ("fp32", "int8", "int4")
BATCHES = (1, 4, 16)
PEERS = ("ctranslate2", "onnxruntime-genai")

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("sampling", __doc__)
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="a trained run (default: random weights of the preset `baseline`)"
    )
    parser.add_count("--characters", 256, "characters of each text")
    parser.add_count("--rounds", 7, "texts of each sampler")
    peers, default = "the Python that has the peers (default: the one of `make peers`)", ROOT / ".peers/bin/python"
    parser.add_argument("--peers", type=Path, default=default, metavar="FILE", help=peers)
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows, facts = _measure(args, Path(folder))
    _print(rows, facts)
    name = args.run.name if args.run else None
    keep(args, {"run": name, "characters": args.characters, "rounds": args.rounds}, rows, **facts)
    return 0


def _measure(args: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of the result, and its other entries."""
    if args.run:
        run, preset = RunDir(args.run.absolute()), str(RunDir(args.run).read_config().get("preset"))
    else:
        shape = replace(PRESETS["baseline"].model, vocab_size=VOCAB_SIZE)
        run, preset = random_run(folder / "run", shape), "baseline"
    config, _ = run.read_shape()
    if args.characters >= config.block_size:
        raise UserError(f"the peers cannot sample past the context of {config.block_size}; use fewer --characters")
    corpus = find_cached(run.read_section("corpus")) if args.run else None
    for precision in SHOWN:
        export(run, folder / f"{precision}.onnx", precision, portable=False, corpus=corpus)

    def ours(precision: str, batch: int = 1, temperature: float = 1.0, speculative: bool = False) -> SamplingEntry:
        options = {"path": str(folder / f"{precision}.onnx"), "characters": args.characters}
        options |= {"temperature": temperature, "speculative": speculative}
        return SamplingEntry("bench.engines.sample_charformer", options, "charformer-onnx", precision, batch)

    versions = _versions(args.peers)
    torch = {"path": str(run.path), "characters": args.characters}
    naive = {"model": config.to_dict(), "characters": args.characters}
    entries = [
        SamplingEntry("bench.engines.sample_charformer", torch, "charformer-torch", "fp32"),
        SamplingEntry("bench.engines.sample_baseline", naive, "baseline", "fp32"),
        *map(ours, SHOWN),
        *_peers(args, versions, run, folder),
    ]
    if corpus is not None:
        entries += [ours(precision, speculative=True) for precision in SHOWN]
        entries += [ours("int8", temperature=0.8, speculative=speculative) for speculative in (False, True)]
    grid = [ours(precision, batch) for precision in SHOWN for batch in BATCHES]
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        measured = interleave_samplers(entries, args.rounds, on_progress)
        rows = [entry.row("interleaved", preset, config.block_size) for entry in measured]
        for number, (entry, threads) in enumerate(product(grid, THREADS)):
            on_progress(f"{entry.label}, batch {entry.batch}, threads {threads}", number, len(grid) * len(THREADS))
            rows.append(measure_alone(entry, threads, args.rounds).row("grid", preset, config.block_size))
    facts = {
        "greedy_characters_like_pytorch": _agreement(measured),
        "first_character_seconds": _first_character(folder / "int8.onnx", args.rounds),
        "floor": [_floor(folder / f"{precision}.onnx", rows, threads) for precision in SHOWN for threads in THREADS],
        "peers": versions,
    }
    return rows, facts


def _peers(args: argparse.Namespace, found: dict[str, str], run: RunDir, folder: Path) -> list[SamplingEntry]:
    """Return the peers in ``found`` that can take the run's weights; print what is missing and why."""
    config, _ = run.read_shape()
    if config.rope_base or config.relu_power != 1 or config.ngram_order:
        needed = "learned positions, a plain ReLU and no n-gram prior"
        print(f"the peers' rows are missing: they need {needed}, as in the preset baseline")
        return []
    missing = [name for name in PEERS if name not in found]
    if missing:
        print(f"{' and '.join(missing)}: missing, and so are the rows; `make peers` installs both")
    models = folder / "peers"
    models.mkdir()
    if len(missing) < len(PEERS):
        write_for_peers(run, models)

    def peer(engine: str, precision: str, **options: str) -> SamplingEntry:
        given: dict[str, Any] = options | {"characters": args.characters}
        module, python = f"bench.engines.sample_{engine}", str(args.peers.absolute())
        return SamplingEntry(module, given, engine, precision, python=python)

    entries = [
        peer("ctranslate2", precision, folder=str(models), weights=precision)
        for precision in ("fp32", "int8")
        if "ctranslate2" in found
    ]
    return entries + [
        peer("genai", precision, folder=str(models / f"genai-{precision}"))
        for precision in SHOWN
        if "onnxruntime-genai" in found
    ]


def _agreement(entries: list[SamplingEntry]) -> dict[str, int]:
    """Return how many greedy characters of each sampler agree with PyTorch's before the first that differs."""
    wanted = next(entry.greedy for entry in entries if entry.engine == "charformer-torch")
    agreed: dict[str, int] = {}
    for entry in entries:
        if entry.engine != "baseline":  # its weights differ
            same = takewhile(lambda pair: pair[0] == pair[1], zip(entry.greedy, wanted, strict=False))
            agreed.setdefault(entry.label, len(list(same)))
    return agreed


def _first_character(file: Path, rounds: int) -> dict[str, results.Speed]:
    """Return the seconds of whole processes: the command for one character, and an import of onnxruntime alone."""
    sample = [sys.executable, "-m", "charformer.commands.sample", "--onnx", str(file), "--max-new-tokens", "1"]
    commands = {"sample": sample, "import onnxruntime": [sys.executable, "-c", "import onnxruntime"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - began)
    # The first of each filled the file cache.
    return {name: results.percentiles(samples[1:]) for name, samples in seconds.items()}


def _floor(file: Path, rows: list[Row], threads: int) -> dict[str, Any]:
    """Return the bytes of weights that a character reads, how fast this machine reads that many bytes over and over,
    and which share of that speed sampling reaches."""
    graph = onnx.load(file).graph
    size = sum(len(tensor.raw_data) for tensor in graph.initializer if "_emb" not in tensor.name)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", READ_OVER_AND_OVER, str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, encoding="utf-8")
    found = {"precision": file.stem, "threads": threads, "batch": 1}
    speeds = [row["chars_per_second"] for row in rows if row["part"] == "grid" and found.items() <= row.items()]
    bandwidth = float(done.stdout)
    return found | {
        "weight_bytes": size,
        "read_bytes_per_second": bandwidth,
        "chars_per_second": bandwidth / size,
        "reached": speeds[0]["p50"] * size / bandwidth,
    }


READ_OVER_AND_OVER = """
import sys, time
import numpy as np
x = np.ones(int(sys.argv[1]) // 4, np.float32)
seconds = []
for _ in range(200):
    began = time.perf_counter()
    x.dot(x)
    seconds.append(time.perf_counter() - began)
print(x.nbytes / np.median(seconds))
"""


def _versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers' packages."""
    if not python.is_file():
        return {}
    command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)
    return {entry["name"]: entry["version"] for entry in listed if entry["name"] in (*PEERS, "onnxruntime", "numpy")}


def _print(rows: list[Row], facts: dict[str, Any]) -> None:
    print_speeds({"sampling": rows})
    columns = {"weights": "{precision}", "threads": "{threads:}", "bytes": "{weight_bytes:,}"}
    columns |= {"bytes read a second": "{read_bytes_per_second:,.0f}", "chars/s of reading": "{chars_per_second:,.0f}"}
    print_table("the floor", facts["floor"], columns | {"reached": "{reached:.0%}"})
    first = ({"process": name, **seconds} for name, seconds in facts["first_character_seconds"].items())
    print_table("to the first character", first, {"process": "{process}", "seconds": "{p50:.2f}"})


if __name__ == "__main__":
    raise SystemExit(main())

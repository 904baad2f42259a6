"""Measure how fast our engines sample, against the baseline's way, CTranslate2 and onnxruntime-genai.

    python -m bench.sampling                      random weights of the baseline's size
    python -m bench.sampling --run runs/pretrain  a trained model, with speculative sampling

Each sampler runs in a process of its own. They take turns of one text each, so that ratios hold when the machine's
speed drifts. CTranslate2 and onnxruntime-genai live in an environment of their own, which `make peers` creates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import Progress

from bench.engines.baseline import VOCAB_SIZE
from bench.engines.sampling_models import random_run, write_for_peers
from bench.harness import results
from bench.harness.charts import write_bars
from bench.harness.interleave import ROOT
from bench.harness.program import BenchParser, execute, keep, show, table
from bench.harness.sampling import THREADS, SamplingEntry, interleave_samplers, measure_alone
from charformer.data.cached import find_cached
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from export.exporter import export

SHOWN = ("fp32", "int8", "int4")
BATCHES = (1, 4, 16)

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("sampling", __doc__)
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="a trained run (default: random weights of the preset `baseline`)"
    )
    parser.add_count("--characters", 256, "characters of each text")
    parser.add_count("--rounds", 7, "texts of each sampler")
    parser.add_argument(
        "--peers",
        type=Path,
        default=ROOT / ".peers/bin/python",
        metavar="FILE",
        help="the Python that has the peers (default: the one of `make peers`)",
    )
    parser.add_chart("a chart of the speeds of one text")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows, facts = _measure(args, Path(folder))
    _print(rows, facts)
    name = args.run.name if args.run else None
    keep(args, {"run": name, "characters": args.characters, "rounds": args.rounds}, rows, **facts)
    if args.chart:
        ranked = sorted((row for row in rows if row["part"] == "interleaved"), key=_median, reverse=True)
        bars = [(results.label(row), row["chars_per_second"], row["engine"] == "charformer-onnx") for row in ranked]
        title = f"one text of {args.characters} characters, each sampler at its best threads"
        write_bars(args.chart, [(title, bars)])
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
        return SamplingEntry(
            "charformer-onnx", precision, "bench.engines.sample_charformer", options, batch, temperature, speculative
        )

    entries = [*_engines(args, run), *map(ours, SHOWN), *_peers(args, run, folder)]
    if corpus is not None:
        entries += [ours(precision, speculative=True) for precision in SHOWN]
        entries += [ours("int8", temperature=0.8, speculative=speculative) for speculative in (False, True)]
    grid = [ours(precision, batch) for precision in SHOWN for batch in BATCHES]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(entries) * (2 + args.rounds) + len(grid) * len(THREADS))

        def done(doing: str) -> None:
            progress.update(task, advance=1, description=doing)

        measured = interleave_samplers(entries, args.rounds, done)
        rows = [entry.row("interleaved", preset, config.block_size) for entry in measured]
        for entry in grid:
            for threads in THREADS:
                rows.append(measure_alone(entry, threads, args.rounds).row("grid", preset, config.block_size))
                done(f"{entry.precision}, batch {entry.batch}, {threads} threads")
    facts = {
        "greedy_characters_like_pytorch": _agreement(measured),
        "first_character_seconds": _first_character(folder / "int8.onnx", args.rounds),
        "floor": [_floor(folder / f"{precision}.onnx", rows, threads) for precision in SHOWN for threads in THREADS],
        "peers": _versions(args.peers),
    }
    return rows, facts


def _engines(args: argparse.Namespace, run: RunDir) -> list[SamplingEntry]:
    """Return our PyTorch engine, and the baseline's way of sampling at the same shape."""
    config, _ = run.read_shape()
    ours = {"path": str(run.path), "characters": args.characters, "torch": True}
    baseline = {"model": config.to_dict(), "characters": args.characters}
    return [
        SamplingEntry("charformer-torch", "fp32", "bench.engines.sample_charformer", ours),
        SamplingEntry("baseline", "fp32", "bench.engines.sample_baseline", baseline),
    ]


def _peers(args: argparse.Namespace, run: RunDir, folder: Path) -> list[SamplingEntry]:
    """Return the peers that are installed and can take the run's weights; print what is missing and why."""
    config, _ = run.read_shape()
    if config.rope_base or config.relu_power != 1:
        print("the peers' rows are missing: they need learned positions and a plain ReLU, as in the preset baseline")
        return []
    found = [module for module in ("ctranslate2", "onnxruntime_genai") if _imports(args.peers, module)]
    models = folder / "peers"
    models.mkdir()
    if found:
        write_for_peers(run, models)

    def peer(module: str, engine: str, precision: str, **options: str) -> SamplingEntry:
        given: dict[str, Any] = options | {"characters": args.characters}
        return SamplingEntry(engine, precision, module, given, python=str(args.peers.absolute()))

    entries = []
    if "ctranslate2" in found:
        for precision in ("fp32", "int8"):
            options = {"folder": str(models), "weights": precision}
            entries.append(peer("bench.engines.sample_ctranslate2", "ctranslate2", precision, **options))
    if "onnxruntime_genai" in found:
        for precision in SHOWN:
            entries.append(
                peer("bench.engines.sample_genai", "genai", precision, folder=str(models / f"genai-{precision}"))
            )
    return entries


def _imports(python: Path, module: str) -> bool:
    if python.is_file() and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
        return True
    print(f"{module} is missing, and so are its rows: `make peers` installs it")
    return False


def _agreement(entries: list[SamplingEntry]) -> dict[str, int]:
    """Return how many greedy characters of each sampler agree with PyTorch's before the first that differs."""
    wanted = next(entry.greedy for entry in entries if entry.engine == "charformer-torch")
    agreed: dict[str, int] = {}
    for entry in entries:
        if entry.engine != "baseline":  # its weights differ
            same = takewhile(lambda pair: pair[0] == pair[1], zip(entry.greedy, wanted, strict=False))
            agreed.setdefault(entry.label, len(list(same)))
    return agreed


def _first_character(file: Path, rounds: int) -> dict[str, results.Speed | None]:
    """Return the seconds of whole processes: the command for one character, and an import of onnxruntime alone."""
    sample = [sys.executable, "-m", "charformer.commands.sample", "--onnx", str(file), "--max-new-tokens", "1"]
    commands = {"sample": sample, "import onnxruntime": [sys.executable, "-c", "import onnxruntime"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - began)
    return {
        name: results.percentiles(samples[1:]) for name, samples in seconds.items()
    }  # the first filled the file cache


def _floor(file: Path, rows: list[Row], threads: int) -> dict[str, Any]:
    """Return the bytes of weights that a character reads, how fast this machine reads that many bytes over and over,
    and which share of that speed sampling reaches."""
    graph = onnx.load(file).graph
    size = sum(len(tensor.raw_data) for tensor in graph.initializer if "_emb" not in tensor.name)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", READ_OVER_AND_OVER, str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, encoding="utf-8")
    found = {"precision": file.stem, "threads": threads, "batch": 1}
    speeds = [_median(row) for row in rows if row["part"] == "grid" and found.items() <= row.items()]
    bandwidth = float(done.stdout)
    return found | {
        "weight_bytes": size,
        "read_bytes_per_second": bandwidth,
        "chars_per_second": bandwidth / size,
        "reached": speeds[0] * size / bandwidth,
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
    wanted = ("ctranslate2", "onnxruntime", "onnxruntime-genai", "numpy")
    return {entry["name"]: entry["version"] for entry in listed if entry["name"] in wanted}


def _print(rows: list[Row], facts: dict[str, Any]) -> None:
    entries = [row for row in rows if row["part"] == "interleaved"]
    others = {row["engine"]: row for row in entries}
    speeds = table("one text", ["sampler"], ["threads", "chars/s", "p20 - p80", "x baseline", "x PyTorch", "MiB"])
    for row in sorted(entries, key=_median):
        speed, memory = row["chars_per_second"], row["peak_memory_bytes"]
        speeds.add_row(
            results.label(row),
            str(row["threads"]),
            f"{speed['p50']:,.0f}",
            f"{speed['p20']:,.0f} - {speed['p80']:,.0f}",
            f"{results.ratio(row, others['baseline']):.1f}",
            f"{results.ratio(row, others['charformer-torch']):.1f}",
            f"{memory / 2**20:,.0f}" if memory else "",
        )
    columns = [f"batch {batch}" for batch in BATCHES]
    together = table("chars/s of all texts together", ["precision", "threads"], columns)
    for precision in SHOWN:
        for threads in THREADS:
            cells = [row for row in rows if row["part"] == "grid" and row["precision"] == precision]
            found = [f"{_median(row):,.0f}" for row in cells if row["threads"] == threads]
            together.add_row(precision, str(threads), *found)
    floors = table("the floor", ["weights", "threads"], ["MB", "read GB/s", "chars/s of reading alone", "reached"])
    for floor in facts["floor"]:
        floors.add_row(
            floor["precision"],
            str(floor["threads"]),
            f"{floor['weight_bytes'] / 1e6:.1f}",
            f"{floor['read_bytes_per_second'] / 1e9:.0f}",
            f"{floor['chars_per_second']:,.0f}",
            f"{floor['reached']:.0%}",
        )
    show(speeds, together, floors)
    sample, alone_ = (facts["first_character_seconds"][name]["p50"] for name in ("sample", "import onnxruntime"))
    print(f"to the first character {sample:.2f} s, {sample / alone_:.1f} x an import of onnxruntime")


def _median(row: Row) -> float:
    return float(row["chars_per_second"]["p50"])


if __name__ == "__main__":
    raise SystemExit(main())

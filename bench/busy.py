"""Measure how much a busy program slows a training or a sampler down, by the number of threads.

    python -m bench.busy --json bench/results/busy.json

Each number of threads takes turns, alone and beside one process that never pauses, for several rounds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from statistics import median

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, print_table
from bench.harness.runs import run_process, speeds
from bench.harness.sampling import SamplingEntry, measure_alone
from charformer.data.cached import find_cached
from charformer.runs.folder import RunDir
from export.exporter import export
from kernels.checks.cli import positive

PRESET = "nano"
CHARACTERS = 250  # of a sampled text
TEXTS = 5  # in a round
CHOSEN = "chosen"
Speeds = dict[tuple[str, str, bool], list[float]]


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("busy", __doc__)
    parser.add_count("--steps", 40, "steps of a training")
    parser.add_count("--rounds", 3, "rounds")
    threads = list(dict.fromkeys([CHOSEN, str(os.cpu_count() or 1), "1"]))
    shown = "numbers of threads; chosen leaves it to charformer-train (default: chosen, all, 1)"
    parser.add_argument("--threads", nargs="+", default=threads, metavar="N", type=_threads, help=shown)
    parser.add_data("--data", "tiny-shakespeare")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    trainings = [("training", threads) for threads in args.threads]
    settings = trainings + [("sampling, fp32", threads) for threads in args.threads if threads != CHOSEN]
    turns: Speeds = {(*setting, busy): [] for setting, busy in product(settings, (False, True))}
    with tempfile.TemporaryDirectory() as folder:
        run, file = RunDir(Path(folder) / "run"), Path(folder) / "fp32.onnx"
        _train(args, run, CHOSEN)
        dtype = run.read_section("machine")["dtype"]
        export(run, file, "fp32", portable=False, corpus=find_cached(run.read_section("corpus")))
        options = {"path": str(file), "characters": CHARACTERS}
        sampler = SamplingEntry("bench.engines.sample_charformer", options, "charformer-onnx", "fp32")
        for _ in range(args.rounds):
            for (work, threads, busy), found in turns.items():
                with busy_process() if busy else nullcontext():
                    if work == "training":
                        found.append(_train(args, run, threads))
                    else:
                        found.append(median(measure_alone(sampler, int(threads), TEXTS).samples))
    rows = [
        results.row(
            engine="charformer" if work == "training" else "charformer-onnx",
            preset=PRESET,
            precision=dtype if work == "training" else "fp32",
            work=work,
            threads=threads,
            busy=busy,
            chars_per_second=results.percentiles(found),
            samples=len(found),
            turns=found,
        )
        for (work, threads, busy), found in turns.items()
    ]
    pairs = zip(rows[0::2], rows[1::2], strict=True)  # alone, and beside a busy process
    shown = [{"alone": alone, "beside": beside, "share": results.ratio(beside, alone)} for alone, beside in pairs]
    columns = {"work": "{alone[work]}", "threads": "{alone[threads]}"}
    columns |= {way: f"{{{way}[chars_per_second][p50]:,.0f}}" for way in ("alone", "beside")}
    print_table("characters a second", shown, columns | {"share": "{share:.2f}"})
    config = {name: getattr(args, name) for name in ("steps", "rounds")}
    keep(args, config | {"preset": PRESET, "data": Path(args.data).name}, rows)
    return 0


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one processor busy with another process for the length of the context."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def _threads(text: str) -> str:
    return text if text == CHOSEN else str(positive(text))


def _train(args: argparse.Namespace, run: RunDir, threads: str) -> float:
    """Return the median speed of one training in ``run``. Raise UserError if it fails."""
    flags = ["--preset", PRESET, "--steps", str(args.steps), "--data", args.data]
    flags += ["--device", "cpu", "--eval-interval", str(max(1, args.steps // 4)), "--eval-batches", "1"]
    flags += ["--out", str(run.path), "--overwrite", *([] if threads == CHOSEN else ["--threads", threads])]
    run_process(["charformer.commands.train", *flags, "--json"])
    return median(speeds(run))


if __name__ == "__main__":
    sys.exit(main())

"""Compare one process of N threads with N processes of one thread: characters a second of the same training.

    python -m bench.processes --processes 2 --json bench/results/processes.json

`charformer-train` runs by itself and through torchrun, in turn, for several rounds, on the CPU.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, print_table
from bench.harness.runs import run_process, speeds
from charformer.data import corpus
from charformer.runs.folder import RunDir


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("processes", __doc__)
    parser.add_count("--processes", 2, "processes that train one model")
    parser.add_presets("nano", "fast")
    parser.add_count("--steps", 100, "steps of a round")
    parser.add_count("--rounds", 3, "rounds of each")
    parser.add_data("--data", "tiny-shakespeare")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    corpus.load(args.data)  # a mistake is reported now, and only the first training has to encode the text
    rows = []
    for preset in args.preset:
        flags = ["--preset", preset, "--steps", str(args.steps), "--data", args.data, "--device", "cpu"]
        turns: dict[int, list[float]] = {1: [], args.processes: []}
        for _ in range(args.rounds):
            for processes, found in turns.items():
                found.append(_speed(flags, processes, args.processes // processes))
        for processes, found in turns.items():
            row = results.row(
                engine="charformer",
                preset=preset,
                threads=args.processes // processes,
                processes=processes,
                chars_per_second=results.percentiles(found),
                samples=len(found),
                turns=found,
                ratio=median(many / one for many, one in zip(found, turns[1], strict=True)),
            )
            rows.append(row)
    columns = {"preset": "{preset}", "processes": "{processes:}", "threads each": "{threads:}"}
    print_table(None, rows, columns | {"characters/s": "{chars_per_second[p50]:,.0f}", "x one process": "{ratio:.2f}"})
    config = {name: getattr(args, name) for name in ("processes", "preset", "steps", "rounds")}
    keep(args, config | {"data": Path(args.data).name}, rows)
    return 0


def _speed(flags: list[str], processes: int, threads: int) -> float:
    """Return the median speed of a training by ``processes`` of ``threads`` each."""
    launch = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        flags = [*flags, "--eval-interval", "20", "--eval-batches", "1", "--out", str(run.path)]
        run_process([*launch, "charformer.commands.train", *flags, "--json"], OMP_NUM_THREADS=str(threads))
        return median(speeds(run))


if __name__ == "__main__":
    sys.exit(main())

"""What fewer bits cost and save: loss over the whole validation split against characters a second.

python -m bench.precision --run runs/pretrain --json bench/results/precision.json
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.harness import results
from bench.harness.sampling import Sampler, contest
from charformer.commands.common import Parser, execute
from charformer.data.corpus import recall
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description
from export.exporter import file_content
from export.graph import PRECISIONS, Precision
from export.verify import compare, reference_logits
from kernels.checks.cli import positive, writable_file

VARIANTS = {
    **{name: PRECISIONS[name] for name in ("fp32", "int8", "int4")},
    "int4, head too": Precision(4, 4),
    "int4, blocks of 64": Precision(4, 8, block=64),
    "int4, blocks of 32": Precision(4, 8, block=32),
}
CHARACTERS = 256
MODULE = "bench.engines.sample_charformer"


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    parser = Parser("bench.precision", __doc__.partition("\n")[0], "")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a trained run whose text is at hand")
    parser.add_argument(
        "--rounds", type=positive, default=7, metavar="N", help="texts of each variant (default: %(default)s)"
    )
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="where the result goes")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows = _measure(RunDir(args.run), args.rounds)
    _print(rows)
    if args.json:
        training = RunDir(args.run).read_config()
        config = {key: training[key] for key in ("stage", "preset", "model", "training", "corpus")}
        config |= {"rounds": args.rounds, "characters": CHARACTERS}
        results.write_result(args.json, results.result("precision", config, rows))
    return 0


def _measure(run: RunDir, rounds: int) -> list[dict[str, Any]]:
    config, vocab = run.read_shape()
    tensors, metadata = run.read_weights(config)
    corpus = recall(run.read_section("corpus"))
    if corpus is None:
        raise UserError(f"the text of {run.path} is not at hand")
    split = corpus.validation
    starts = np.arange(0, len(split) - config.block_size, config.block_size)
    ids = corpus.table(vocab)[split[starts[:, None] + np.arange(config.block_size + 1)]]
    wanted = reference_logits(config, tensors, ids[:, :-1])
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(VARIANTS) * (2 + rounds))

        def done(doing: str) -> None:
            progress.update(task, advance=1, description=doing)

        losses, samplers = [], []
        for number, (name, precision) in enumerate(VARIANTS.items()):
            file = Path(folder) / f"{number}.onnx"
            description = Description(config, vocab, name.partition(",")[0], False, metadata["sha256"], None)
            file.write_bytes(file_content(description, tensors, precision))
            losses.append(asdict(compare(OnnxEngine(file), ids, wanted)) | {"bytes": file.stat().st_size})
            tail = ["onnx", str(file), "{threads}", "1", str(CHARACTERS), "1.0", "plain"]
            samplers.append(Sampler("charformer-onnx", name, [sys.executable, "-m", MODULE, *tail]))
            done(f"loss in {name}")
        processes = contest(samplers, rounds, done)
    preset = str(run.read_config().get("preset"))
    return [
        loss | process.row("precision", preset, config.block_size)
        for process, loss in zip(processes, losses, strict=True)
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("weights", "MB", "KL", "validation loss", "costs", "threads", "chars/s")
    for row in rows:
        table.add_row(
            row["precision"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['kl']:.1e}",
            f"{row['loss']:.4f}",
            f"{row['loss'] - row['checkpoint_loss']:+.4f}",
            str(row["threads"]),
            f"{row['chars_per_second']['p50']:,.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())

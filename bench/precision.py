"""Measure what fewer bits cost and save: loss over the whole validation split against characters a second.

python -m bench.precision --run runs/pretrain --json bench/results/precision.json
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.harness.program import BenchParser, execute, keep, show, table
from bench.harness.sampling import SamplingEntry, interleave_samplers
from charformer.data.cached import find_cached
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description
from export.exporter import file_content
from export.graph import PRECISIONS, Precision
from export.verify import compare, reference_logits

VARIANTS = {
    **{name: PRECISIONS[name] for name in ("fp32", "int8", "int4")},
    "int4, head too": Precision(4, 4),
    "int4, blocks of 64": Precision(4, 8, block=64),
    "int4, blocks of 32": Precision(4, 8, block=32),
}
CHARACTERS = 256


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("precision", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a trained run whose text is cached")
    parser.add_count("--rounds", 7, "texts of each variant")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    rows = _measure(RunDir(args.run), args.rounds)
    _print(rows)
    training = RunDir(args.run).read_config()
    config = {key: training[key] for key in ("stage", "preset", "model", "training", "corpus")}
    keep(args, config | {"rounds": args.rounds, "characters": CHARACTERS}, rows)
    return 0


def _measure(run: RunDir, rounds: int) -> list[dict[str, Any]]:
    config, vocab = run.read_shape()
    tensors, metadata = run.read_weights(config)
    corpus = find_cached(run.read_section("corpus"))
    if corpus is None:
        raise UserError(f"the text of {run.path} is not in the cache")
    split = corpus.validation
    starts = np.arange(0, len(split) - config.block_size, config.block_size)
    ids = corpus.table(vocab)[split[starts[:, None] + np.arange(config.block_size + 1)]]
    ngram = run.read_ngram(config)
    wanted = reference_logits(config, tensors, ids[:, :-1], ngram)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(VARIANTS) * (3 + rounds))

        def done(doing: str) -> None:
            progress.update(task, advance=1, description=doing)

        losses, entries = [], []
        for number, (name, precision) in enumerate(VARIANTS.items()):
            file = Path(folder) / f"{number}.onnx"
            description = Description(config, vocab, name.partition(",")[0], False, metadata["sha256"], None, ngram)
            file.write_bytes(file_content(description, tensors, precision))
            losses.append(asdict(compare(OnnxEngine(file), ids, wanted)) | {"bytes": file.stat().st_size})
            options = {"path": str(file), "characters": CHARACTERS}
            entries.append(SamplingEntry("charformer-onnx", name, "bench.engines.sample_charformer", options))
            done(f"loss in {name}")
        measured = interleave_samplers(entries, rounds, done)
    preset = str(run.read_config().get("preset"))
    return [
        loss | entry.row("precision", preset, config.block_size) for entry, loss in zip(measured, losses, strict=True)
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    found = table(None, ["weights"], ["MB", "KL", "validation loss", "change", "threads", "chars/s"])
    for row in rows:
        found.add_row(
            row["precision"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['kl']:.1e}",
            f"{row['loss']:.4f}",
            f"{row['loss'] - row['checkpoint_loss']:+.4f}",
            str(row["threads"]),
            f"{row['chars_per_second']['p50']:,.0f}",
        )
    show(found)


if __name__ == "__main__":
    raise SystemExit(main())

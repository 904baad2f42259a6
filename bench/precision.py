"""Measure what fewer bits cost and save: loss over the whole validation split against characters a second.

    python -m bench.precision --run runs/pretrain --json bench/results/precision.json

Each precision is that of an exported .onnx file.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.program import BenchParser, execute, keep, print_table, run_config, text_of
from bench.harness.sampling import SamplingEntry, interleave_samplers
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description
from charformer.ui.console import PlainConsole, progress_bar
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
    columns = {"weights": "{precision}", "bytes": "{bytes:,}", "KL": "{kl:.1e}", "validation loss": "{loss:.4f}"}
    columns |= {"of the checkpoint": "{checkpoint_loss:.4f}", "threads": "{threads:}"}
    print_table(None, rows, columns | {"chars/s": "{chars_per_second[p50]:,.0f}"})
    keep(args, run_config(RunDir(args.run)) | {"rounds": args.rounds, "characters": CHARACTERS}, rows)
    return 0


def _measure(run: RunDir, rounds: int) -> list[dict[str, Any]]:
    config, vocab = run.read_shape()
    tensors, metadata = run.read_weights(config)
    corpus = text_of(run)
    split = corpus.validation
    starts = np.arange(0, len(split) - config.block_size, config.block_size)
    ids = corpus.table(vocab)[split[starts[:, None] + np.arange(config.block_size + 1)]]
    ngram = run.read_ngram(config)
    wanted = reference_logits(config, tensors, ids[:, :-1], ngram)
    with tempfile.TemporaryDirectory() as folder, progress_bar(PlainConsole(stderr=True)) as on_progress:
        losses, entries = [], []
        for number, (name, precision) in enumerate(VARIANTS.items()):
            on_progress(f"loss in {name}", number, len(VARIANTS))
            file = Path(folder) / f"{number}.onnx"
            description = Description(config, vocab, name.partition(",")[0], False, metadata["sha256"], None, ngram)
            file.write_bytes(file_content(description, tensors, precision))
            losses.append(asdict(compare(OnnxEngine(file), ids, wanted)) | {"bytes": file.stat().st_size})
            options = {"path": str(file), "characters": CHARACTERS}
            entries.append(SamplingEntry("bench.engines.sample_charformer", options, "charformer-onnx", name))
        measured = interleave_samplers(entries, rounds, on_progress)
    preset = str(run.read_config().get("preset"))
    return [
        loss | entry.row("precision", preset, config.block_size) for entry, loss in zip(measured, losses, strict=True)
    ]


if __name__ == "__main__":
    raise SystemExit(main())

"""Compare the memory that `charformer-train --plan` counts with what a training takes, by batch and context.

    python -m bench.memory --json bench/results/memory.json

Each batch and context runs in a process of its own, whose peak includes what Python and PyTorch take by themselves.
"""

import argparse
from dataclasses import replace
from itertools import product

import torch

from bench.engines.variant import Variant
from bench.harness.interleave import interleave
from bench.harness.program import BenchParser, execute, keep, load_text, print_table
from bench.harness.training import TrainingEntry
from charformer.device import choose_dtype
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.training.estimate import memory
from charformer.ui.console import PlainConsole, progress_bar

SECONDS = 0.01  # of a turn, which takes two steps at least


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("memory", __doc__)
    parser.add_presets("baseline", several=False)
    parser.add_counts("--batch", [8, 32, 64], "batch sizes")
    parser.add_counts("--context", [128, 256, 384], "context lengths")
    parser.add_data()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    corpus = load_text(args.data)
    precision = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    chosen = PRESETS[args.preset]
    rows = []
    pairs = list(product(args.context, args.batch))
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for done, (context, batch) in enumerate(pairs):
            on_progress(f"{batch} x {context}", done, len(pairs))
            corpus.require(context, "take a smaller --context, or a longer text")
            shape = replace(chosen.model, block_size=context, vocab_size=len(corpus.alphabet))
            variant = Variant("charformer", args.preset, shape, batch, precision)
            entry = TrainingEntry(variant, {"corpus": corpus.summary(), "device": "cpu"}, SECONDS)
            interleave([entry], 1)
            model = GPT(shape)
            here = memory(model, chosen.pretrain, variant.dtype, fused=False, sequences=batch).of(batch)
            on_gpu = memory(model, chosen.pretrain, torch.bfloat16, fused=True).of(batch)
            rows.append(entry.row("memory", {}, counted_bytes=here, counted_on_gpu_bytes=on_gpu))
    keep(args, {"corpus": corpus.name, "preset": args.preset}, rows)
    columns = {"context": "{context:}", "batch": "{batch:}", "counted": "{counted_bytes:,}"}
    columns |= {
        "measured": "{peak_memory_bytes:,}",
        "counted on a GPU": "{counted_on_gpu_bytes:,}",
        "error": "{error:}",
    }
    print_table("bytes", rows, columns)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

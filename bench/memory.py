"""Compare the memory that `charformer-train --plan` counts with what a training takes, by batch and context.

    python -m bench.memory --json bench/results/memory.json

Each batch and context runs in a process of its own, whose peak includes what Python and PyTorch take by themselves.
"""

import argparse
from dataclasses import replace
from itertools import product

import torch

from bench.engines.variant import TORCH_DTYPES, Variant
from bench.harness.interleave import interleave
from bench.harness.program import BenchParser, execute, keep, load_text, positive, show, table
from bench.harness.training import TrainingEntry
from charformer.device import choose_dtype
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.training.estimate import GPU_SIZES, RESERVE, memory
from charformer.ui.console import PlainConsole, progress_bar

MIB = 2**20
SECONDS = 0.01  # of a turn, which takes two steps at least


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("memory", __doc__)
    parser.add_presets("baseline", several=False)
    parser.add_argument(
        "--batch", type=positive, nargs="+", default=[8, 32, 64], metavar="N", help="batch sizes (default: 8 32 64)"
    )
    parser.add_argument(
        "--context",
        type=positive,
        nargs="+",
        default=[128, 256, 384],
        metavar="N",
        help="context lengths (default: 128 256 384)",
    )
    parser.add_data()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    notices = PlainConsole(stderr=True)
    corpus = load_text(args.data, notices)
    precision = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    chosen = PRESETS[args.preset]
    rows = []
    pairs = list(product(args.context, args.batch))
    columns = ["context", "batch", "counted", "measured", *(f"GPU of {size} GiB" for size in GPU_SIZES)]
    found = table("MiB", [], columns)
    with progress_bar(notices) as on_progress:
        for done, (context, batch) in enumerate(pairs):
            on_progress(f"{batch} x {context}", done, len(pairs))
            corpus.require(context, "take a smaller --context, or a longer text")
            shape = replace(chosen.model, block_size=context, vocab_size=len(corpus.alphabet))
            variant = Variant("charformer", args.preset, shape, batch, precision)
            entry = TrainingEntry(variant, {"corpus": corpus.summary(), "device": "cpu"}, SECONDS)
            interleave([entry], 1)
            model = GPT(shape)
            here = memory(model, chosen.pretrain, TORCH_DTYPES[precision], fused=False, sequences=batch)
            on_card = memory(model, chosen.pretrain, torch.bfloat16, fused=True)
            row = entry.row("memory", {}, counted_bytes=here.of(batch), counted_on_gpu_bytes=on_card.of(batch))
            rows.append(row)
            peak = row["peak_memory_bytes"]
            fits = [on_card.of(batch) <= size * 2**30 - RESERVE["cuda"] for size in GPU_SIZES]
            found.add_row(
                str(context),
                str(batch),
                f"{here.of(batch) / MIB:,.0f}",
                f"{peak / MIB:,.0f}" if peak else str(row["error"]),
                *("fits" if fit else "does not fit" for fit in fits),
            )
    keep(args, {"corpus": corpus.name, "preset": args.preset}, rows)
    show(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

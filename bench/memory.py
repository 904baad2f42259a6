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
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab
from charformer.device import choose_dtype
from charformer.model.gpt import GPT
from charformer.presets import PRESETS, Preset
from charformer.training.estimate import memory
from charformer.training.prior import PriorRows, count_tables
from charformer.ui.console import PlainConsole, progress_bar

BATCHES, CONTEXTS = (8, 32, 64), (128, 256, 384)
SECONDS = 0.01  # of a turn, which takes two steps at least
CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("memory", __doc__)
    parser.add_presets("baseline", several=False)
    parser.add_data()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    corpus = load_text(args.data)
    corpus.require(max(CONTEXTS), "take a longer text")
    precision = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    chosen = PRESETS[args.preset]
    tables = _table_bytes(chosen, corpus)
    rows = []
    pairs = list(product(CONTEXTS, BATCHES))
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for done, (context, batch) in enumerate(pairs):
            on_progress(f"{batch} x {context}", done, len(pairs))
            shape = replace(chosen.model, block_size=context, vocab_size=len(corpus.alphabet))
            variant = Variant("charformer", args.preset, shape, batch, precision)
            entry = TrainingEntry(variant, {"corpus": corpus.summary(), "device": "cpu"}, SECONDS)
            interleave([entry], 1)
            model = GPT(shape)
            here = memory(model, chosen.pretrain, variant.dtype, fused=False, sequences=batch, tables=tables).of(batch)
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


def _table_bytes(preset: Preset, corpus: Corpus) -> int:
    """Return the bytes of the preset's n-gram prior, or 0 if it has none."""
    if not preset.model.ngram_order:
        return 0
    vocab = Vocab.of(corpus.alphabet)
    tables = count_tables(corpus, vocab, preset.model, preset.pretrain)
    return PriorRows(tables, corpus, vocab, preset.model.ngram_order, CPU, keeps=False).bytes()


if __name__ == "__main__":
    raise SystemExit(main())

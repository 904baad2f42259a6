"""Measure what each ingredient of a preset contributes, by repeating the pretraining without it.

    python -m bench.ablation --preset nano        every ingredient of nano, some twenty minutes on two cores

Every variant runs the preset's whole pretraining with the same seed and the same batches. Its loss is that of the best
weights over the whole validation split. Its sampling speed is that of the exported 8-bit model, measured with all
variants taking turns.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.engines import baseline
from bench.harness import results
from bench.harness.program import BenchParser, corpus_config, execute, keep, load_text, show, table
from bench.harness.sampling import SamplingEntry, interleave_samplers
from bench.harness.variants import open_trainer, with_changes
from charformer.device import keep_freed_memory
from charformer.errors import UserError
from charformer.presets import PRESETS, Preset
from charformer.training.trainer import Trainer
from export.exporter import export

WITHOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rotary positions (learned ones)": {"rope_base": 0.0},
    "squared ReLU (plain)": {"relu_power": 1},
    "Muon (AdamW for all)": {"muon_learning_rate": 0.0},
    "a start from zero (PyTorch's)": {"zero_init": 0},
    "the rate's fall (constant)": {"decay_fraction": 0.0},
    "weight decay": {"weight_decay": 0.0},
    "the n-gram prior": {"ngram_order": 0},
}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("ablation", __doc__)
    parser.add_presets("nano", several=False)
    parser.add_count("--steps", None, "steps of each run")
    parser.add_data()
    parser.add_device()
    parser.add_dtype()
    parser.add_count("--characters", 200, "characters to sample for each text")
    parser.add_count("--rounds", 7, "texts of each variant")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    notices = Console(stderr=True)
    corpus = load_text(args.data, notices)
    keep_freed_memory()
    preset = with_changes(PRESETS[args.preset], {"max_steps": args.steps, "patience": 0})
    config = {
        "preset": args.preset,
        "model": preset.model.to_dict(),
        "training": preset.pretrain.to_dict(),
        "characters": args.characters,
        "rounds": args.rounds,
        "corpus": corpus_config(corpus),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rows: list[dict[str, Any]] = []
    entries = []
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=notices) as progress:
        for number, (name, changes) in enumerate(variants(preset).items()):
            trainer = open_trainer(args, with_changes(preset, changes), corpus, Path(folder) / str(number))
            task = progress.add_task(f"without {name}", total=trainer.config.max_steps)
            for step in trainer.steps():
                progress.update(task, completed=step.step)
            rows.append(_row(trainer, name, changes))
            keep(args, config, rows)
            file = trainer.run.onnx
            export(trainer.run, file, "int8", portable=False, corpus=corpus)
            options = {"path": str(file), "characters": args.characters}
            entries.append(SamplingEntry("charformer-onnx", "int8", "bench.engines.sample_charformer", options))
        task = progress.add_task("sampling", total=None)
        measured = interleave_samplers(
            entries, args.rounds, lambda doing: progress.update(task, advance=1, description=doing)
        )
        for row, entry in zip(rows, measured, strict=True):
            sampled = entry.row("sampling", args.preset, preset.model.block_size)
            row["sampling"] = {key: sampled[key] for key in ("chars_per_second", "samples", "threads")}
    keep(args, config, rows)
    _print(rows)
    return 0


def variants(preset: Preset) -> dict[str, dict[str, Any]]:
    """Return the changes that remove each ingredient of ``preset``, by its name. Raise UserError if there are none."""
    values = preset.model.to_dict() | preset.pretrain.to_dict()
    found = {
        name: changes
        for name, changes in WITHOUT.items()
        if not changes or any(values.get(field, 0) != value for field, value in changes.items())
    }
    if len(found) == 1:
        raise UserError("this preset has none of the ingredients; choose another --preset")
    return found


def _row(trainer: Trainer, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return results.training_row(
        trainer.run,
        without=name,
        changes=changes,
        val_loss=trainer.whole_validation_loss(),
        characters=trainer.counters.characters,
        seconds=trainer.counters.train_seconds,
    )


def _print(rows: list[dict[str, Any]]) -> None:
    figures = ["validation loss", "change", f"{baseline.ITS_LOSS:g} after", "seconds", "chars/s", "int8 chars/s"]
    found = table("each ingredient left out", ["without"], figures)
    for row in rows:
        there = next((point for point in row["curve"] if point["val_loss"] <= baseline.ITS_LOSS), None)
        found.add_row(
            row["without"],
            f"{row['val_loss']:.4f}",
            f"{row['val_loss'] - rows[0]['val_loss']:+.4f}",
            f"{there['characters'] / 1e6:.2f} M, {there['seconds']:.0f} s" if there else "never",
            f"{row['seconds']:.0f}",
            f"{row['chars_per_second']['p50']:,.0f}",
            f"{row['sampling']['chars_per_second']['p50']:,.0f}",
        )
    show(found)


if __name__ == "__main__":
    sys.exit(main())

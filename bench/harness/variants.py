"""Pretrain variants of a preset in this process, and describe each by a row of a result."""

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.runs import training_row
from charformer.config import ModelConfig, TrainConfig
from charformer.data.corpus import Corpus
from charformer.device import choose_device, choose_dtype
from charformer.presets import Preset
from charformer.runs.folder import RunDir
from charformer.training.session import Place, prepare_pretrain
from charformer.training.trainer import Trainer

Row = dict[str, Any]


def with_changes(preset: Preset, changes: dict[str, Any]) -> Preset:
    """Return ``preset`` with other values for fields of its model and its pretraining."""
    model, training = (
        {item.name: value for item in fields(config) if (value := changes.get(item.name)) is not None}
        for config in (ModelConfig, TrainConfig)
    )
    return replace(preset, model=replace(preset.model, **model), pretrain=replace(preset.pretrain, **training))


def train_variant(
    args: argparse.Namespace,
    preset: Preset,
    name: str,
    corpus: Corpus,
    folder: Path,
    on_progress: Callable[[str, int, int], None],
    patch: Callable[[Trainer], None] = lambda _: None,
) -> tuple[RunDir, Row]:
    """Pretrain ``preset`` in ``folder``; return the run, and its row with the loss of the whole validation split.

    Args:
        args: has the name of the preset, the device and the dtype.
        patch: changes the trainer before its first step.
    """
    device = choose_device(args.device)
    place = Place(device, choose_dtype(args.dtype, device))
    session = prepare_pretrain(RunDir(folder), preset.model, preset.pretrain, args.preset, corpus, place)
    session.open()
    trainer = session.trainer
    patch(trainer)
    for step in trainer.steps():
        on_progress(name, step.step, preset.pretrain.max_steps)
    counters, prior = trainer.counters, trainer.prior
    return trainer.run, training_row(
        trainer.run,
        variant=name,
        val_loss=trainer.whole_validation_loss(),
        table_loss=table_loss(trainer),
        ngrams=len(prior.tables.whole) if prior else None,
        table_bytes=trainer.run.ngram.stat().st_size if prior else None,
        counting_seconds=prior.tables.seconds if prior else None,
        best_step=counters.best_step,
        characters=counters.characters,
        passes=counters.characters / len(corpus.train),
        seconds=counters.train_seconds,
    )


def table_loss(trainer: Trainer) -> float | None:
    """Return the loss of the n-gram table alone on the windows of the validation split, or None without a prior."""
    if trainer.prior is None:
        return None
    ids, length = trainer.corpus.validation, trainer.model.config.block_size
    starts = np.arange(0, len(ids) - length, length)
    rows = trainer.prior.within("validation", starts, length).cpu().numpy()
    places = starts[:, None] + np.arange(1, length + 1)
    targets = trainer.prior.to_vocab[ids[places]][..., None]
    return -float(np.log(np.take_along_axis(rows, targets, axis=2), dtype=np.float64).mean())

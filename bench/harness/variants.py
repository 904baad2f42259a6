"""Trainings of a preset with a few of its values changed."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from charformer.config import ModelConfig, TrainConfig
from charformer.data.corpus import Corpus
from charformer.device import choose_device, choose_dtype
from charformer.presets import Preset
from charformer.runs.folder import RunDir
from charformer.training.session import Place, prepare_pretrain
from charformer.training.trainer import Trainer


def with_changes(preset: Preset, changes: dict[str, Any]) -> Preset:
    """Return ``preset`` with other values for fields of its model and its pretraining."""
    model, training = (
        {item.name: value for item in fields(config) if (value := changes.get(item.name)) is not None}
        for config in (ModelConfig, TrainConfig)
    )
    return replace(preset, model=replace(preset.model, **model), pretrain=replace(preset.pretrain, **training))


def open_trainer(args: argparse.Namespace, preset: Preset, corpus: Corpus, folder: Path) -> Trainer:
    """Return the trainer of a pretraining of ``preset`` that begins in ``folder``.

    ``args`` has the name of the preset, the device and the dtype.
    """
    device = choose_device(args.device)
    place = Place(device, choose_dtype(args.dtype, device))
    session = prepare_pretrain(RunDir(folder), preset.model, preset.pretrain, args.preset, corpus, place)
    session.open()
    return session.trainer

"""What a new training takes from a preset, and what its caller changes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from charformer.config import MODEL_FIELDS, TRAIN_FIELDS
from charformer.data.corpus import Corpus
from charformer.errors import UserError
from charformer.presets import DEFAULT_PRESETS, PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.training.session import Place, TrainingSession, prepare_finetune, prepare_pretrain


@dataclass(frozen=True)
class Recipe:
    """What to train, before a text is loaded.

    Attributes:
        preset: the name of the preset that values come from.
        source: the run that a fine-tune starts from; None pretrains.
        freeze: what a fine-tune leaves as it is.
        values: fields of ModelConfig and TrainConfig that differ from the preset's.
    """

    preset: str
    source: RunDir | None
    freeze: str
    values: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return "finetune" if self.source else "pretrain"

    def session(self, run: RunDir, corpus: Corpus, place: Place) -> TrainingSession:
        """Return a session that trains in ``run`` on ``corpus``, which ``open`` begins.

        Raises UserError for values that are impossible or fixed, and for a text that is too short.
        """
        preset = PRESETS[self.preset]
        training = replace(getattr(preset, self.stage), **_chosen(self.values, TRAIN_FIELDS))
        shape = _chosen(self.values, MODEL_FIELDS)
        if self.source is None:
            return prepare_pretrain(run, replace(preset.model, **shape), training, self.preset, corpus, place)
        if shape:
            raise UserError(f"`{next(iter(shape))}` is the checkpoint's in a fine-tune; leave it out")
        return prepare_finetune(run, self.source, training, self.preset, self.freeze, corpus, place)


def choose_recipe(
    device: str, preset: str | None, source: RunDir | None, freeze: str | None, values: Mapping[str, Any]
) -> Recipe:
    """Return what to train; without ``preset`` that of the source, or the default of the device.

    Raises UserError for a preset or values that are unknown, and for ``freeze`` without a source.
    """
    if unknown := [name for name in values if name not in (*MODEL_FIELDS, *TRAIN_FIELDS)]:
        raise UserError(f"`{unknown[0]}` is not a field of ModelConfig or TrainConfig")
    if freeze and source is None:
        raise UserError("`freeze` is for fine-tuning; pass `init_from` too")
    if preset is None:
        preset = _preset_of(source) if source else DEFAULT_PRESETS[device]
    if preset not in PRESETS:
        raise UserError(f"`preset` is {preset!r}; it can be {', '.join(PRESETS)}")
    return Recipe(preset, source, freeze or "none", values)


def _preset_of(source: RunDir) -> str:
    """Return the preset that a run was made with. Raises UserError for a preset unknown to this version."""
    preset = RunRecord.read(source).preset
    if preset not in PRESETS:
        raise UserError(f"{source.config} names an unknown preset {preset!r}; pass `preset`")
    return preset


def _chosen(values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}

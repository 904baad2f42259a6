"""The recipe of a new training: a preset and the values that its caller changes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from charformer.config import DROPOUTS, MODEL_FIELDS, TRAIN_FIELDS, ModelConfig, TrainConfig, require_fields
from charformer.data.corpus import Corpus
from charformer.data.ngram import MAX_CHARACTERS
from charformer.errors import UserError
from charformer.presets import DEFAULT_PRESETS, PRESETS, Preset
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.training.session import Place, TrainingSession, prepare_finetune, prepare_pretrain

MAX_PASSES = 6.0  # over the training part of a short text
MAX_DISTINCT = 4096  # characters of a text that a preset's n-gram prior suits (docs/training.md)
TUNED_CHARACTERS = 1_003_854  # of the training part of Tiny Shakespeare

log = logging.getLogger("charformer")


@dataclass(frozen=True)
class Recipe:
    """The settings of a new training, before a text is loaded.

    Attributes:
        preset: the name of the preset that supplies all other values.
        source: the run that a fine-tune starts from, or None for pretraining.
        freeze: the part of the model that a fine-tune freezes.
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
        shape = _chosen(self.values, MODEL_FIELDS)
        if self.source is None:
            model = replace(preset.model, **shape)
            if model.ngram_order and "ngram_order" not in shape and len(corpus.alphabet) > MAX_DISTINCT:
                log.info(
                    "the text has %s distinct characters, so the model gets no n-gram prior, which would take more "
                    "time than it saves; `ngram_order` adds one for up to %s",
                    *(f"{len(corpus.alphabet):,}", f"{MAX_CHARACTERS:,}"),
                )
                model = replace(model, ngram_order=0)
            training = self._training(preset, model.block_size, len(corpus.train))
            return prepare_pretrain(run, model, training, self.preset, corpus, place)
        if fixed := [name for name in shape if name not in DROPOUTS]:
            raise UserError(f"`{fixed[0]}` is the checkpoint's in a fine-tune; leave it out")
        block_size = ModelConfig.from_dict(self.source.read_section("model")).block_size
        training = self._training(preset, block_size, len(corpus.train))
        return prepare_finetune(run, self.source, training, self.preset, self.freeze, corpus, place, shape)

    def _training(self, preset: Preset, block_size: int, characters: int) -> TrainConfig:
        """Return the TrainConfig for a training part of ``characters`` characters, and log what is made of them.

        Steps that the caller gives are taken, all of them unless ``patience`` is given too.
        """
        tuned: TrainConfig = getattr(preset, self.stage)
        training = replace(tuned, **_chosen(self.values, TRAIN_FIELDS))
        if not preset.follows_text or self.freeze == "all" or characters <= block_size:  # which is too short anyway
            return training
        steps = steps_for(tuned, training.batch_size * block_size, characters)
        passes = training.max_steps * training.batch_size * block_size / characters
        if "max_steps" in self.values:
            if passes > 2 * MAX_PASSES and training.max_steps > 2 * steps:
                log.warning(
                    "the %s steps pass over the %s characters of the training part %.0f times; about %s suit this text",
                    *(f"{training.max_steps:,}", f"{characters:,}", passes, f"{steps:,}"),
                )
            return training if "patience" in self.values else replace(training, patience=0)
        if steps < training.max_steps:
            log.info(
                "the preset's %s steps would pass over the %s characters of the training part %.0f times; taking %s",
                *(f"{training.max_steps:,}", f"{characters:,}", passes, f"{steps:,}"),
            )
            interval = max(1, round(training.eval_interval * steps / training.max_steps))
            training = replace(training, max_steps=steps, eval_interval=self.values.get("eval_interval", interval))
        return training


def steps_for(tuned: TrainConfig, characters_per_step: int, characters: int) -> int:
    """Return how many steps suit a training part of ``characters`` characters: at most those of the tuned config.

    A short text is passed over ``MAX_PASSES`` times, or as often as the preset passes over the text that it was tuned
    on, if that is more. The learning rate's decay then ends near the point from which on the model would only learn
    the training part by heart (docs/training.md).
    """
    passes = max(MAX_PASSES, tuned.max_steps * characters_per_step / TUNED_CHARACTERS)
    return max(1, min(tuned.max_steps, round(passes * characters / characters_per_step)))


def choose_recipe(
    device: str, preset: str | None, source: RunDir | None, freeze: str | None, values: Mapping[str, Any]
) -> Recipe:
    """Return the recipe; without ``preset`` it has the source's preset, or the default one of the device.

    Raises UserError for a preset or values that are unknown or impossible, and for ``freeze`` without a source.
    """
    require_fields(values)
    if freeze and source is None:
        raise UserError("`freeze` is for fine-tuning; pass `init_from` too")
    if preset is None:
        preset = _preset_of(source) if source else DEFAULT_PRESETS[device]
    if preset not in PRESETS:
        raise UserError(f"`preset` is {preset!r}; it can be {', '.join(PRESETS)}")
    recipe = Recipe(preset, source, freeze or "none", values)
    replace(getattr(PRESETS[preset], recipe.stage), **_chosen(values, TRAIN_FIELDS))  # fail before a text is loaded
    if source is None:
        replace(PRESETS[preset].model, **_chosen(values, MODEL_FIELDS))
    return recipe


def _preset_of(source: RunDir) -> str:
    """Return the preset that a run was made with. Raises UserError for a preset unknown to this version."""
    preset = RunRecord.read(source).preset
    if preset not in PRESETS:
        raise UserError(f"{source.config} names an unknown preset {preset!r}; pass `preset`")
    return preset


def _chosen(values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}

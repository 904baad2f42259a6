"""What a training starts from: a new model, a checkpoint and a second text, or a stopped run."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from charformer import checkpoint
from charformer.config import PRESETS, ModelConfig, TrainConfig
from charformer.corpus import Corpus
from charformer.errors import UserError
from charformer.freeze import FREEZES, freeze
from charformer.model import GPT
from charformer.rundir import RunDir
from charformer.vocab import Vocab

STAGES = ("pretrain", "finetune")


@dataclass(frozen=True)
class Start:
    """A model that is ready to train, on the CPU, and what its run's config.json says of it."""

    model: GPT
    vocab: Vocab
    config: TrainConfig
    record: dict[str, Any]


def pretrain(model_config: ModelConfig, config: TrainConfig, preset: str, corpus: Corpus) -> Start:
    """A new model for ``corpus``."""
    corpus.require(model_config.block_size, f"choose a --block-size of at most {_longest(corpus)}, or a longer text")
    vocab = Vocab.of(corpus.alphabet)
    torch.manual_seed(config.seed)
    model = GPT(replace(model_config, vocab_size=len(vocab)))
    return Start(model, vocab, config, {"stage": "pretrain", "preset": preset, "freeze": "none", "init_from": None})


def finetune(source: RunDir, config: TrainConfig, preset: str, what: str, corpus: Corpus) -> Start:
    """The best model of ``source``, its vocabulary extended by the new characters of ``corpus``, partly frozen."""
    model, vocab = checkpoint.load_model(source)
    corpus.require(model.config.block_size, "take a longer text, or pretrain with a smaller --block-size")
    torch.manual_seed(config.seed)
    vocab = vocab.extended(corpus.alphabet)
    model.extend_vocab(len(vocab), torch.Generator().manual_seed(config.seed))
    freeze(model, what)
    record = {"stage": "finetune", "preset": preset, "freeze": what, "init_from": str(source.path)}
    return Start(model, vocab, config, record)


def resume(run: RunDir, changes: dict[str, Any], corpus: Corpus) -> Start:
    """A stopped run as its config.json describes it, with ``changes`` to its TrainConfig; weights come later.

    Raises UserError when the text is no longer the one that the run was started on.
    """
    values = run.read_config()
    began_on = recorded(run, "corpus").get("sha256")
    if corpus.sha256 != began_on:
        raise UserError(f"{corpus.source} has changed since the run began: its SHA-256 was {began_on}")
    config = replace(TrainConfig.from_dict(recorded(run, "training")), **changes)
    vocab = run.read_vocab()
    model = GPT(checkpoint.read_model_config(run))
    if values.get("freeze") not in FREEZES:
        raise UserError(f"{run.config} has an unknown freeze {values.get('freeze')!r}")
    freeze(model, values["freeze"])
    return Start(model, vocab, config, {key: values.get(key) for key in ("stage", "preset", "freeze", "init_from")})


def recorded(run: RunDir, section: str) -> dict[str, Any]:
    """One object of a run's config.json. Raises UserError when it is missing."""
    values = run.read_config().get(section)
    if not isinstance(values, dict):
        raise UserError(f"{run.config} has no {section!r}")
    return values


def preset_of(run: RunDir) -> str:
    """The preset that a run was made with. Raises UserError for one that this version does not know."""
    preset = run.read_config().get("preset")
    if preset not in PRESETS:
        raise UserError(f"{run.config} names an unknown preset {preset!r}; pass --preset")
    return str(preset)


def _longest(corpus: Corpus) -> int:
    return max(min(len(corpus.train), len(corpus.validation)) - 1, 0)

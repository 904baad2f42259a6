"""What a training starts from: a new model, a checkpoint and a second text, or a stopped run."""

import platform
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from charformer import __version__
from charformer.config import ModelConfig, TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab
from charformer.device import describe
from charformer.errors import UserError
from charformer.model.freeze import FREEZES, freeze
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_tensors, write_tensors
from charformer.training.distributed import ALONE, Team
from charformer.training.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """A model that is ready to train, on the CPU, and what its run's config.json says of it."""

    model: GPT
    vocab: Vocab
    corpus: Corpus
    config: TrainConfig
    record: dict[str, Any]


def pretrain(model_config: ModelConfig, config: TrainConfig, preset: str, corpus: Corpus) -> Start:
    """A new model for ``corpus``."""
    longest = min(len(corpus.train), len(corpus.validation)) - 1
    advice = f"choose a --block-size of at most {longest}, or a longer text" if longest > 0 else "take a longer text"
    corpus.require(model_config.block_size, advice)
    vocab = Vocab.of(corpus.alphabet)
    torch.manual_seed(config.seed)
    model = GPT(replace(model_config, vocab_size=len(vocab)))
    if config.zero_init:
        model.zero_init()
    record = {"stage": "pretrain", "preset": preset, "freeze": "none", "prompt": "", "init_from": "", "changes": []}
    return Start(model, vocab, corpus, config, record)


def finetune(source: RunDir, config: TrainConfig, preset: str, what: str, corpus: Corpus) -> Start:
    """The best model of ``source``, its vocabulary extended by the new characters of ``corpus``, partly frozen."""
    model, vocab = checkpoint.load_model(source)
    corpus.require(model.config.block_size, "take a longer text, or pretrain with a smaller --block-size")
    torch.manual_seed(config.seed)
    vocab = vocab.extended(corpus.alphabet)
    model.extend_vocab(len(vocab), torch.Generator().manual_seed(config.seed))
    freeze(model, what)
    prompt = str(source.read_config().get("prompt", ""))  # so that the samples of both stages can be compared
    record = {"stage": "finetune", "preset": preset, "freeze": what, "prompt": prompt, "init_from": str(source.path)}
    return Start(model, vocab, corpus, config, record | {"changes": []})


def resume(run: RunDir, changes: dict[str, Any], corpus: Corpus) -> Start:
    """A stopped run as its config.json describes it, with ``changes`` to its TrainConfig; weights come later.

    Raises UserError when the text is no longer the one that the run was started on.
    """
    values = run.read_config()
    began_on = run.read_section("corpus").get("sha256")
    if corpus.sha256 != began_on:
        raise UserError(f"{corpus.source} is not the text that the run began with, whose SHA-256 was {began_on}")
    config = replace(TrainConfig.from_dict(run.read_section("training")), **changes)
    shape, vocab = run.read_shape()
    record: dict[str, Any] = {
        key: str(values.get(key) or "") for key in ("stage", "preset", "freeze", "prompt", "init_from")
    }
    changes_before = values.get("changes")
    record["changes"] = changes_before if isinstance(changes_before, list) else []
    if record["freeze"] not in FREEZES:
        raise UserError(f"{run.config} has an unknown freeze {record['freeze']!r}")
    model = GPT(shape)
    freeze(model, record["freeze"])
    return Start(model, vocab, corpus, config, record)


def open_run(start: Start, run: RunDir, device: torch.device, dtype: torch.dtype, team: Team = ALONE) -> Trainer:
    """A trainer of a new run; the leader's clears its folder and writes what is known of it."""
    trainer = _trainer(start, run, device, dtype, team)
    if team.is_leader:
        run.start()
        _record(trainer, start)
        run.write_vocab(start.vocab)
    return trainer


def reopen_run(start: Start, run: RunDir, device: torch.device, dtype: torch.dtype, team: Team = ALONE) -> Trainer:
    """A trainer of a stopped run, where it stopped; the leader's records what has changed if steps are left.

    Raises UserError when the run is past its last step.
    """
    trainer = _trainer(start, run, device, dtype, team)
    if team.is_leader:
        run.tidy()
    trainer.resume()
    if trainer.counters.step > start.config.max_steps:
        raise UserError(f"{run.path} is at step {trainer.counters.step:,} already; --steps must be at least that")
    if trainer.counters.step < start.config.max_steps and team.is_leader:
        _note_changes(trainer, start)
        _record(trainer, start)
    return trainer


def is_begun(start: Start, run: RunDir) -> bool:
    """Whether ``run`` has saved a training that began like ``start``, so that going on with it comes to the same."""
    if not (run.exists and run.state.is_file()):
        return False
    wanted = start.record | {"model": start.model.config.to_dict(), "training": start.config.to_dict()}
    there = run.read_config()
    is_same_text = run.read_section("corpus").get("sha256") == start.corpus.sha256
    return is_same_text and all(there.get(key) == value for key, value in wanted.items())


def _note_changes(trainer: Trainer, start: Start) -> None:
    """Add to the record how its course differs from what config.json has, and from which step on."""
    before, now = trainer.run.read_section("training"), start.config.to_dict()
    names = [name for name in now if before.get(name) != now[name]]
    if names:
        change = {"from_step": trainer.counters.step, **{name: [before.get(name), now[name]] for name in names}}
        start.record["changes"] = [*start.record["changes"], change]


def rescue(trainer: Trainer, start: Start) -> RunDir:
    """Save a training in the system's temporary folder, since its own can no longer be written to.

    Raises UserError where that fails as well.
    """
    lost = trainer.run
    try:
        trainer.run = RunDir(tempfile.mkdtemp(prefix="charformer-"))
    except OSError as error:
        raise UserError(f"no temporary folder either: {error.strerror}") from error
    _record(trainer, start)
    trainer.run.write_vocab(start.vocab)
    trainer.run.write_metrics(trainer.history)
    counters = trainer.counters
    if counters.best_step == counters.step:  # perhaps not written yet
        checkpoint.save_weights(trainer.run, trainer.model, counters.step, counters.best_val_loss)
    else:
        try:
            write_tensors(trainer.run.weights, *read_tensors(lost.weights))
        except UserError:  # the best weights are lost; the next evaluation's count as such
            checkpoint.save_weights(trainer.run, trainer.model, counters.step, float("inf"))
    trainer.save()
    return trainer.run


def _trainer(start: Start, run: RunDir, device: torch.device, dtype: torch.dtype, team: Team) -> Trainer:
    return Trainer(start.model.to(device), start.vocab, start.corpus, start.config, run, device, dtype, team)


def _record(trainer: Trainer, start: Start) -> None:
    trainer.run.write_config(
        start.record
        | {
            "model": start.model.config.to_dict(),
            "training": start.config.to_dict(),
            "corpus": trainer.corpus.summary(),
            "machine": describe(trainer.device, trainer.dtype),
            "processes": trainer.team.size,
            "versions": {
                "charformer": __version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
        }
    )


def preset_of(run: RunDir) -> str:
    """The preset that a run was made with. Raises UserError for one that this version does not know."""
    preset = run.read_config().get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"{run.config} names an unknown preset {preset!r}; pass --preset")
    return preset

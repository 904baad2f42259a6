"""One stage of training from its start to its result.

A session is prepared from a new model, from a checkpoint and a second text, or from a stopped run; ``open`` writes or
reads its folder; ``trainer.steps()`` trains; ``finish`` scores the result.
"""

import logging
import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from charformer import __version__
from charformer.config import DROPOUTS, FIXED_FIELDS, ModelConfig, TrainConfig, require_fields
from charformer.data.corpus import Corpus
from charformer.data.ngram import MAX_CHARACTERS
from charformer.data.vocab import Vocab
from charformer.device import choose_device, choose_dtype, describe
from charformer.errors import UserError
from charformer.files import write_text
from charformer.model.freeze import FREEZES, freeze
from charformer.model.gpt import GPT
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from charformer.runs.model_card import model_card
from charformer.runs.record import RunRecord
from charformer.runs.tensors import read_tensors, write_tensors
from charformer.sampling import sampler
from charformer.sampling.torch_engine import TorchEngine
from charformer.training.distributed import ONE_PROCESS, World
from charformer.training.kernel_check import check_kernels
from charformer.training.prior import Tables, choose_tables, find_tables
from charformer.training.schedule import plan_again
from charformer.training.signals import StoppedError
from charformer.training.trainer import Trainer
from charformer.ui.plots import Rows, plot_losses

SAMPLE_CHARACTERS = 500
PLANNED_BY = {"max_steps", "patience", "decay_fraction"}  # the values that decide where a training ends

log = logging.getLogger("charformer")


@dataclass(frozen=True)
class Place:
    """The device, dtype and processes of a training.

    Attributes:
        dtype: the dtype of matrix products.
        world: the processes that share the training.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    world: World = ONE_PROCESS

    @classmethod
    def choose(
        cls, device: str, dtype: str, recorded: Mapping[str, Any] | None = None, world: World = ONE_PROCESS
    ) -> Self:
        """Return the place of these names. Where one is ``auto``, the recorded machine of a resumed run decides.

        Raises UserError for a device that is not available, or that the processes cannot share.
        """
        before = recorded or {}
        place = choose_device(device if device != "auto" else str(before.get("device", "auto")))
        if place.type == "mps" and world.size > 1:
            raise UserError("several processes cannot share an Apple GPU; pass `device` cpu, or train in one process")
        name = dtype if dtype != "auto" else str(before.get("dtype", "auto"))
        return cls(place, choose_dtype(name, place), world)


@dataclass(frozen=True)
class Result:
    """The loss of the best weights over the validation split, and a text sampled from them.

    Attributes:
        scored_characters: the number of characters in that mean; None, like the loss, if scoring was stopped.
    """

    val_loss: float | None
    scored_characters: int | None
    sample: str


class TrainingSession:
    """One stage of training: the model, its vocabulary, the text, the folder, and the record of the run.

    Args:
        record: the content of config.json; the session fills in its corpus, machine and versions.
        is_resumed: whether ``open`` continues the run in the folder instead of starting a new one.
        tables: the tables of a model with an n-gram prior, unless they are counted from ``corpus`` alone.
        is_replanned: whether a resumed run, which patience may have shortened, ends as its config now says.
    """

    def __init__(
        self,
        run: RunDir,
        record: RunRecord,
        model: GPT,
        vocab: Vocab,
        corpus: Corpus,
        place: Place,
        is_resumed: bool,
        tables: Tables | None = None,
        is_replanned: bool = False,
    ) -> None:
        self.record = replace(
            record,
            corpus=corpus.summary(),
            machine=describe(place.device, place.dtype),
            processes=place.world.size,
            versions={
                "charformer": __version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
        )
        self.vocab = vocab
        self.is_resumed = is_resumed
        self._is_replanned = is_replanned
        self.trainer = Trainer(
            model.to(place.device), vocab, corpus, record.training, run, place.device, place.dtype, place.world, tables
        )

    @property
    def run(self) -> RunDir:
        return self.trainer.run

    @property
    def model(self) -> GPT:
        return self.trainer.model

    @property
    def corpus(self) -> Corpus:
        return self.trainer.corpus

    def open(self) -> None:
        """Clear the folder and write the run's config and vocabulary, or continue the run in the folder.

        Every process must call this at the same time, and only the main process writes. Raises UserError if there is no
        run to continue, or it is past its last step, and ProcessLostError if this fails in another process.
        """
        trainer = self.trainer
        check_kernels(self.model.config, trainer.device, trainer.dtype, trainer.world)
        self.record.machine = describe(trainer.device, trainer.dtype)  # only now is it known which kernels run
        if not self.is_resumed and self.record.stage == "finetune" and trainer.prior is not None:
            trainer.fit_correction()
        trainer.world.main_first(self._open_folder)

    def _open_folder(self) -> None:
        if self.is_resumed:
            self._continue()
        elif self.trainer.world.is_main:
            self.run.start()
            self.record.write(self.run)
            self.run.write_vocab(self.vocab)
            self._write_ngram()

    def _write_ngram(self) -> None:
        if self.trainer.prior is not None:
            self.run.write_ngram(self.trainer.prior.tables.whole)

    def _continue(self) -> None:
        is_main = self.trainer.world.is_main
        if is_main:
            self.run.tidy()
        self.trainer.resume()
        step = self.trainer.counters.step
        if step > self.record.training.max_steps:
            raise UserError(f"{self.run.path} is at step {step:,} already; `max_steps` must be at least that")
        if self._is_replanned:
            plan_again(self.trainer.counters)
            self.trainer.save()
            self.trainer.join_saves()  # before config.json has the new plan, so that a kill between them loses neither
        if is_main and (self._is_replanned or not self.trainer.is_finished):
            self._note_changes(step)
            self.record.write(self.run)
            self._write_ngram()

    def _note_changes(self, step: int) -> None:
        """Add to the record the training values that differ from config.json, and the step at which they change."""
        found = RunRecord.read(self.run)
        before, now = (
            {**{name: getattr(record.model, name) for name in DROPOUTS}, **record.training.to_dict()}
            for record in (found, self.record)
        )
        names = [name for name in now if before[name] != now[name]]
        if names:
            change = {"from_step": step, **{name: [before[name], now[name]] for name in names}}
            self.record.changes = [*self.record.changes, change]

    def rescue(self) -> RunDir:
        """Save the training in the system's temporary folder, for use when its own folder is no longer writable.

        Raises UserError if that fails as well.
        """
        trainer, lost = self.trainer, self.run
        try:
            trainer.run = RunDir(tempfile.mkdtemp(prefix="charformer-"))
        except OSError as error:
            raise UserError(f"no temporary folder either: {error.strerror}") from error
        trainer.drop_saves()
        self.record.write(self.run)
        self.run.write_vocab(self.vocab)
        self._write_ngram()
        self.run.write_metrics(trainer.history)
        counters = trainer.counters
        if trainer.unwritten_best is not None:
            checkpoint.save_weights(self.run, trainer.unwritten_best, counters.best_step, counters.best_val_loss)
        else:
            try:
                write_tensors(self.run.weights, *read_tensors(lost.weights))
            except UserError:  # the best weights are lost; those of the next evaluation become the best
                checkpoint.save_weights(self.run, self.model.state_dict(), counters.step, float("inf"))
        trainer.save()
        trainer.join_saves()
        return self.run

    def finish(self, on_progress: Callable[[int, int], None] = lambda *_: None, most: int | None = None) -> Result:
        """Load the best weights into the model, score them, and write a sample from them and the model card.

        The sample is a function of the weights, the run's prompt and its seed. ``on_progress`` is called with the
        number of characters scored so far and the total, and may raise StoppedError. A validation split of more than
        ``most`` characters is scored on a fixed subset.
        """
        val_loss: float | None = None
        with suppress(StoppedError):
            val_loss = self.trainer.whole_validation_loss(on_progress, most)
        scored = None if val_loss is None else self.trainer.scored_characters(most)
        text = self._sample(SAMPLE_CHARACTERS)
        write_text(self.run.sample, text)
        self.write_card(result := Result(val_loss, scored, text))
        return result

    def write_card(self, result: Result | None = None) -> None:
        """Write the model card, README.md, with ``result`` if the training is finished. Raises WriteError."""
        known = (result.sample, result.val_loss, result.scored_characters) if result else ()
        if not self.run.write_card(model_card(self.record, self.trainer.history, *known)):
            log.info("%s has been changed, so it stays as it is", self.run.card)

    def sample_between_steps(self, characters: int) -> str:
        """Return the run's prompt and what the model, as it is by now, writes after it."""
        with self.trainer.paused():
            return self._sample(characters)

    def _sample(self, characters: int) -> str:
        ids = sampler.encode_prompt(self.vocab, self.record.prompt)
        config = sampler.SamplingConfig(max_new_tokens=characters, seed=self.record.training.seed)
        prior = self.trainer.prior
        engine = TorchEngine(self.model, self.trainer.device, ngram=prior.tables.whole if prior else None)
        return self.vocab.decode(np.concatenate([ids, *sampler.generate(engine, ids, 1, config)]))

    def plot(self) -> None:
        """Draw loss.png, with the losses of this run and, for a fine-tune, those of its source run."""
        stages: list[tuple[str, Rows]] = [(f"{self.record.stage} on {self.corpus.name}", self.trainer.history)]
        source = RunDir(self.record.init_from)
        if self.record.init_from and source.exists and (rows := source.read_metrics()):
            values = source.read_config()
            stages.insert(0, (f"{values['stage']} on {values['corpus']['name']}", rows))
        plot_losses(self.run, stages)


def prepare_pretrain(
    run: RunDir, shape: ModelConfig, training: TrainConfig, preset: str, corpus: Corpus, place: Place
) -> TrainingSession:
    """Return a session that trains a new model on ``corpus``. Raises UserError for a text that is too short."""
    longest = min(len(corpus.train), len(corpus.validation)) - 1
    advice = f"choose a `block_size` of at most {longest}, or a longer text" if longest > 0 else "take a longer text"
    corpus.require(shape.block_size, advice)
    vocab = Vocab.of(corpus.alphabet)
    if shape.ngram_order and len(vocab) > MAX_CHARACTERS:
        log.warning(
            "training without an n-gram prior: the text has %s distinct characters, and a prior takes up to %s",
            f"{len(vocab):,}",
            f"{MAX_CHARACTERS:,}",
        )
        shape = replace(shape, ngram_order=0)
    torch.manual_seed(training.seed)
    model = GPT(replace(shape, vocab_size=len(vocab)))
    if training.zero_init:
        model.zero_init()
    record = RunRecord("pretrain", preset, "none", model.config, training, corpus.summary())
    return TrainingSession(run, record, model, vocab, corpus, place, is_resumed=False)


def prepare_finetune(
    run: RunDir,
    source: RunDir,
    training: TrainConfig,
    preset: str,
    frozen: str,
    corpus: Corpus,
    place: Place,
    dropouts: Mapping[str, Any] | None = None,
) -> TrainingSession:
    """Return a session that fine-tunes the best model of ``source``, with new characters added to its vocabulary.

    ``dropouts`` replaces those of its ModelConfig.

    Raises UserError if ``source`` has no model, or the text is too short for it.
    """
    model, vocab = checkpoint.load_model(source, dropouts=dropouts)
    corpus.require(model.config.block_size, "take a longer text, or pretrain with a smaller `block_size`")
    torch.manual_seed(training.seed)
    vocab = vocab.extended(corpus.alphabet)
    model.extend_vocab(len(vocab), torch.Generator().manual_seed(training.seed))
    freeze(model, frozen)
    tables = None
    counted = ""
    if model.config.ngram_order:
        counted, tables, least = choose_tables(source, corpus, vocab, model.config, training)
        if least > training.ngram_min_count:
            log.info(
                "the table leaves out n-grams that occur fewer than %d times, as that of %s does", least, source.path
            )
        training = replace(training, ngram_min_count=least)
    elif frozen == "all":
        raise UserError("`freeze` all leaves nothing to train; it is for a model with an n-gram prior")
    record = RunRecord(
        "finetune",
        preset,
        frozen,
        model.config,
        training,
        corpus.summary(),
        prompt=str(source.read_config().get("prompt", "")),  # so that the samples of both stages can be compared
        init_from=str(source.path),
        counted=counted,
        counted_corpus=source.read_section("corpus") if counted == "both" else {},
    )
    return TrainingSession(run, record, model, vocab, corpus, place, is_resumed=False, tables=tables)


def prepare_resume(
    run: RunDir, record: RunRecord, changes: dict[str, Any], corpus: Corpus, place: Place
) -> TrainingSession:
    """Return a session that continues a stopped run from its record, with ``changes`` to its TrainConfig and dropouts.

    Raises UserError for a change that is impossible or of a fixed field, and if the run was started on another text.
    """
    require_fields(changes)
    if fixed := [name for name in changes if name in FIXED_FIELDS]:
        raise UserError(f"`{fixed[0]}` is fixed once a run has begun; leave it out to resume")
    muon = record.training.muon_learning_rate
    if bool(changes.get("muon_learning_rate", muon)) != bool(muon):
        raise UserError(
            f"`muon_learning_rate` is {muon} in this run: whether Muon trains is fixed once a run has begun; "
            "leave it out to resume"
        )
    began_with = record.corpus.get("sha256")
    if corpus.sha256 != began_with:
        raise UserError(f"{corpus.source} is not the text that the run began with, whose SHA-256 was {began_with}")
    if record.freeze not in FREEZES:
        raise UserError(f"{run.config} has an unknown freeze {record.freeze!r}")
    shape, vocab = run.read_shape()
    shape = replace(shape, **{name: value for name, value in changes.items() if name in DROPOUTS})
    model = GPT(shape)
    freeze(model, record.freeze)
    training = {name: value for name, value in changes.items() if name not in DROPOUTS}
    is_replanned = not PLANNED_BY.isdisjoint(training)
    if "max_steps" in training:  # steps that the caller asks for are taken, unless patience is asked for too
        training = {"patience": 0, **training}
    record = replace(record, model=shape, training=replace(record.training, **training))
    tables = None
    if shape.ngram_order and record.counted not in ("", "new"):
        tables = find_tables(record, run, corpus, vocab)
    return TrainingSession(
        run, record, model, vocab, corpus, place, is_resumed=True, tables=tables, is_replanned=is_replanned
    )


def is_begun(session: TrainingSession) -> bool:
    """Return whether the folder has a saved training with this one's settings and text, which can be continued."""
    if not (session.run.exists and session.run.state.is_file()):
        return False
    found, wanted = RunRecord.read(session.run), session.record
    same = ("stage", "preset", "freeze", "prompt", "init_from", "counted", "model", "training", "changes")
    return found.corpus.get("sha256") == wanted.corpus["sha256"] and all(
        getattr(found, name) == getattr(wanted, name) for name in same
    )

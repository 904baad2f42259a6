"""The work of charformer-train after its arguments are checked: prepare a session, train, report."""

import argparse
import json
import os
import time
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import torch

from charformer.commands.common import logs_to
from charformer.commands.plan import show_plan
from charformer.commands.train_arguments import (
    DEFAULT_DATA,
    folder,
    given,
    source_folder,
    stage_of,
)
from charformer.commands.train_report import announce, continue_command, print_summary
from charformer.config import MODEL_FIELDS, TRAIN_FIELDS
from charformer.data import corpus as corpora
from charformer.data.cached import find_cached, load_again
from charformer.data.division import divided, validated_on
from charformer.device import keep_freed_memory, memory_bytes
from charformer.errors import UserError, WriteError
from charformer.model.freeze import count_parameters
from charformer.runs.lock import locked
from charformer.runs.metrics import Progress
from charformer.runs.record import RunRecord
from charformer.sampling import sampler
from charformer.threads import LoadProbe
from charformer.training.distributed import ProcessLostError, World
from charformer.training.recipe import choose_recipe
from charformer.training.session import (
    Place,
    Result,
    TrainingSession,
    is_begun,
    prepare_resume,
)
from charformer.training.signals import StoppedError, stop_signals
from charformer.ui.console import PlainConsole, printable, progress_bar
from charformer.ui.tensorboard import TensorBoardLog
from charformer.ui.training_display import PLAIN_SECONDS, TrainingDisplay

SAMPLE_CHARACTERS = 80  # of a line that shows what the model writes by now
CLOSED_PIPE = 13  # the number of SIGPIPE, which Windows does not define


def run_training(args: argparse.Namespace, world: World, load: LoadProbe) -> int:
    """Train with the settings in ``args``, as one process of ``world``; return the exit code.

    ``load`` has measured the processor time that other programs use since the command began.

    Raises ProcessLostError if another process has failed.
    """
    console, notices = PlainConsole(quiet=not world.is_main), PlainConsole(stderr=True, quiet=not world.is_main)
    with logs_to(console if console.is_interactive else notices), ExitStack() as held:
        if args.plan:
            return show_plan(args, _prepare(args, world, load, console, notices), console)
        session = world.main_first(lambda: _lock_and_prepare(args, world, load, held, console, notices))
        session.open()
        code = _train(args, session, console, notices) if world.is_main else _follow(args, session, notices)
        world.barrier()
        return code


def _lock_and_prepare(
    args: argparse.Namespace,
    world: World,
    load: LoadProbe,
    held: ExitStack,
    console: PlainConsole,
    notices: PlainConsole,
) -> TrainingSession:
    """Lock the folder until ``held`` ends, and return a session that may write there."""
    run = folder(args)
    if world.is_main:
        held.enter_context(locked(run))
    session = _prepare(args, world, load, console, notices)
    gpus = torch.cuda.device_count() if session.trainer.device.type == "cuda" else None
    world.check(session.record.training.batch_size, gpus)
    keep_freed_memory()
    if world.restarts and is_begun(session):  # torchrun restarts processes with their original arguments
        session.is_resumed = True
    if world.is_main and not session.is_resumed:
        was_cut_off = world.restarts > 0 and not (run.state.is_file() or run.weights.is_file())  # before its first save
        run.check_free(args.overwrite or was_cut_off)  # another training may have written there since
        if world.is_launched and args.overwrite:
            run.state.unlink(missing_ok=True)  # else a restart might take the old run for the one that replaces it
    return session


def _prepare(
    args: argparse.Namespace, world: World, load: LoadProbe, console: PlainConsole, notices: PlainConsole
) -> TrainingSession:
    """Load the text, create or load the model, and return their session."""
    stage, run, values = stage_of(args), folder(args), given(args, [*MODEL_FIELDS, *TRAIN_FIELDS])
    if args.resume:
        record = RunRecord.read(run)
        _choose_threads(args, load, record.machine.get("threads"), notices)
        place = Place.choose(args.device, args.dtype, record.machine, world)
        session = prepare_resume(run, record, values, _load_again(args, record.corpus, console, notices), place)
    else:
        _choose_threads(args, load, None, notices)
        place = Place.choose(args.device, args.dtype, world=world)
        source = source_folder(args) if stage == "finetune" else None
        recipe = choose_recipe(place.device.type, args.preset, source, args.freeze, values)
        session = recipe.session(run, _load(args, stage, console, notices), place)
    if args.prompt is not None:
        sampler.encode_prompt(session.vocab, args.prompt)  # fail now, not at the end of a long training
        session.record.prompt = args.prompt
    return session


def _choose_threads(args: argparse.Namespace, load: LoadProbe, recorded: object, notices: PlainConsole) -> None:
    """Set the number of threads: the requested one, the one that the run began with, or what the load leaves free.

    The rounding of sums depends on this number, so a run keeps the one that it began with.
    """
    most = torch.get_num_threads()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    elif isinstance(recorded, int) and 1 <= recorded <= (os.cpu_count() or 1):
        torch.set_num_threads(recorded)
    elif "OMP_NUM_THREADS" not in os.environ and (threads := load.threads(most)) < most:
        torch.set_num_threads(threads)
        notices.print(
            f"note: other programs keep processors busy, so this trains with {threads} of {most} threads; "
            f"--threads {most} takes all"
        )


def _load(args: argparse.Namespace, stage: str, console: PlainConsole, notices: PlainConsole) -> corpora.Corpus:
    """Return the text, divided into a training part and a validation part."""
    with progress_bar(console) as on_progress:

        def notice(text: str) -> None:
            notices.print(f"note: {text}")

        if args.data is None:
            corpus = corpora.load_or_stand_in(DEFAULT_DATA[stage], on_progress, notice)
        else:
            corpus = corpora.load(args.data, on_progress, args.encoding or "utf-8", notice)
        if args.validation is not None:
            return validated_on(corpus, corpora.load(args.validation, on_progress, args.encoding or "utf-8", notice))
        if args.validation_share is None and args.validation_split is None:
            return corpus
        share = corpora.SHARE if args.validation_share is None else args.validation_share
        return divided(corpus, share, args.validation_split or "tail")


def _load_again(
    args: argparse.Namespace, recorded: dict[str, Any], console: PlainConsole, notices: PlainConsole
) -> corpora.Corpus:
    """Return the text of a run: from --data if given, else from the cache or its original place."""
    with progress_bar(console) as on_progress:
        if args.data is None:
            if (corpus := find_cached(recorded, on_progress)) is not None:
                return corpus
            name = str(recorded.get("name"))
            if name not in corpora.DOWNLOADS:
                raise UserError(
                    f"the run's text {name} is neither in the cache nor unchanged at {recorded.get('source')}; "
                    "--data can name its new place"
                )
            places: list[str] = [name]
        else:
            places = args.data
        return load_again(places, recorded, args.encoding, on_progress, lambda text: notices.print(f"note: {text}"))


def _follow(args: argparse.Namespace, session: TrainingSession, notices: PlainConsole) -> int:
    """Run this process's share of the steps; return the exit code.

    The main process reports an error that ends the steps, except an anomaly in this process's share. Raises SystemExit
    if the steps end in an error.
    """
    trainer = session.trainer
    of_all = ProcessLostError if args.detect_anomaly else UserError
    with (
        stop_signals(notices.print, is_patient=True) as stop,
        torch.autograd.set_detect_anomaly(args.detect_anomaly),
    ):
        try:
            for _ in trainer.steps(lambda: trainer.world.agree(stop)):
                pass
        except of_all:
            raise SystemExit(2) from None
    return 128 + stop.signal if stop.signal and not trainer.is_finished else 0


def _train(args: argparse.Namespace, session: TrainingSession, console: PlainConsole, notices: PlainConsole) -> int:
    """Train to the end or until a signal; return the exit code."""
    trainer, counters, record = session.trainer, session.trainer.counters, session.record
    announce(session, console, notices, args.verbose)
    display = TrainingDisplay(
        console,
        title=printable(f"{record.stage} · {session.corpus.name} · {session.run.path}"),
        first_step=counters.step,
        characters_per_step=record.training.batch_size * session.model.config.block_size,
        memory=lambda: memory_bytes(trainer.device),
        history=[(row["step"], row["train_loss"], row["val_loss"]) for row in trainer.history],
    )
    tracker = TensorBoardLog(session.run, counters.step) if args.log else None
    above_panel = console if console.is_interactive else notices
    with (
        stop_signals(above_panel.print, is_patient=trainer.world.is_launched) as stop,
        tracker or nullcontext(),
        display,
        torch.autograd.set_detect_anomaly(args.detect_anomaly),
    ):
        try:
            for progress in trainer.steps(lambda: trainer.world.agree(stop)):
                if tracker:
                    tracker.update(progress)
                try:
                    display.update(progress)
                    if _samples_after(progress, args.sample_interval):
                        sample = session.sample_between_steps(SAMPLE_CHARACTERS)
                        if tracker:
                            tracker.add_sample(progress.step, sample)
                        display.show_sample(progress.step, sample)
                except BrokenPipeError:
                    stop.request(CLOSED_PIPE)
        except WriteError as error:
            raise UserError(f"{error}; {_rescued(session)}") from error
    try:
        session.plot()
    except Exception as error:  # a font or a broken source run may break the plot, but the summary must still come
        notices.print(f"warning: no {session.run.plot}: {error}")
    if stop.signal and not trainer.is_finished:
        with suppress(WriteError):  # what was trained is saved
            session.write_card()
        with suppress(OSError):
            command = continue_command(record.stage, session.run)
            notices.print(f"saved after step {counters.step:,}; to continue: {command}")
        return 128 + stop.signal

    if counters.step and not counters.best_step:
        is_prior_alone = trainer.prior is not None and record.stage == "pretrain" and record.training.zero_init
        notices.print(
            f"warning: validation never got better than before the first step ({counters.best_val_loss:.4f}), so "
            f"{'the n-gram prior alone is kept' if is_prior_alone else 'the weights of the start are kept'}. Likely "
            "causes: too high a --learning-rate, too short a text, or an end of it that is unlike the rest "
            "(--validation-split blocks)"
        )
    result = _finish(args, session, console, notices)
    console.rule("sample")
    console.print(printable(result.sample.strip("\n")))
    console.rule()
    trainable, frozen = count_parameters(session.model)
    summary = {
        "val_loss": result.val_loss,
        "scored_characters": result.scored_characters,
        **{key: vars(counters)[key] for key in ("best_step", "characters", "train_seconds", "eval_seconds")},
        "compile_seconds": trainer.compile_seconds,
        "steps": counters.step,
        "decay_step": counters.decay_step or None,
        "trainable": trainable,
        "frozen": frozen,
        "peak_memory_bytes": memory_bytes(trainer.device),
        "out": str(session.run.path),
        "corpus": session.corpus.summary(),
    }
    print_summary(summary, session, console)
    if args.json:
        print(json.dumps(summary))
    return 0


def _samples_after(progress: Progress, interval: int | None) -> bool:
    """Return whether what the model writes is shown after this step: each ``interval``, or at each evaluation."""
    if progress.step == progress.last_step or interval == 0:
        return False  # the summary shows a longer one at the end
    return progress.evaluation is not None if interval is None else progress.step % interval == 0


def _finish(args: argparse.Namespace, session: TrainingSession, console: PlainConsole, notices: PlainConsole) -> Result:
    """Score the best weights, until done or a signal comes, and write a sample from them; return both."""
    trainer = session.trainer
    said = time.monotonic()

    def leave(_: str) -> None:
        notices.print("the training is complete and saved; it is left without a score")

    with stop_signals(leave, is_patient=trainer.world.is_launched) as stop, progress_bar(console) as show:
        console.print(
            f"scoring the best weights, those of step {trainer.counters.best_step:,}, on "
            f"{trainer.scored_characters(args.score_characters):,} characters of the validation split"
        )

        def on_progress(done: int, total: int) -> None:
            nonlocal said
            if stop:
                raise StoppedError
            show("scoring the validation split", done, total)
            if not console.is_interactive and time.monotonic() - said >= PLAIN_SECONDS:
                said = time.monotonic()
                console.print(f"scored {done:,} of {total:,} characters")

        return session.finish(on_progress, args.score_characters)


def _rescued(session: TrainingSession) -> str:
    """Save a training elsewhere when its folder is no longer writable; return a sentence on the outcome."""
    step = session.trainer.counters.step
    if not step:
        return "nothing was trained yet"
    try:
        run = session.rescue()
    except UserError as error:
        return f"the training could not be saved elsewhere: {error}"
    command = continue_command(session.record.stage, run)
    return f"the training was saved in {run.path} instead, after step {step:,}; to continue: {command}"

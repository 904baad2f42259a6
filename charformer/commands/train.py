"""charformer-train: pretrain on a text, or fine-tune a pretrained run on another."""

import argparse
import json
import shlex
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charformer.commands.common import execute
from charformer.commands.plan import show_plan
from charformer.commands.train_arguments import (
    DEFAULT_DATA,
    DEFAULT_PRESETS,
    MODEL_FIELDS,
    TRAIN_FIELDS,
    build_parser,
    check,
    given,
)
from charformer.data import corpus as corpora
from charformer.errors import UserError, WriteError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.lock import locked
from charformer.sampling import sampler
from charformer.training.distributed import Team, TeammateLostError, joined
from charformer.training.signals import stop_signals
from charformer.ui.console import PlainConsole, printable, progress_bar
from charformer.ui.training_display import TrainingDisplay

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes in the arguments do without it
    import torch

    from charformer.training.session import Start
    from charformer.training.trainer import Trainer

    Choice = tuple[Start, torch.device, torch.dtype]

CLOSED_PIPE = 13  # SIGPIPE's number, which Windows has no name for


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return execute(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    stage = args.stage or "pretrain"
    run = RunDir(args.out or f"runs/{stage}")
    with joined() as team, ExitStack() as held:
        console, notices = PlainConsole(quiet=not team.is_leader), PlainConsole(stderr=True, quiet=not team.is_leader)

        def choose() -> "Choice":
            return _choose(args, stage, run, team, console, notices, held)

        if args.plan:
            return show_plan(args, *choose(), console)
        try:
            trainer, start = team.in_turn(lambda: _open(args, run, team, held, choose()))
        except TeammateLostError:
            if team.is_leader:
                raise
            return 2  # the leader has said why
        code = _train(args, trainer, start, console, notices) if team.is_leader else _follow(args, trainer, notices)
        team.part()
        return code


def _follow(args: argparse.Namespace, trainer: "Trainer", notices: PlainConsole) -> int:
    """Do this process's share of the steps. What ends them the leader says, but for an anomaly in the share itself.

    Raises SystemExit when they end in an error.
    """
    import torch

    of_all = TeammateLostError if args.detect_anomaly else UserError
    with stop_signals(notices, is_patient=True) as stop, torch.autograd.set_detect_anomaly(args.detect_anomaly):
        try:
            for _ in trainer.steps(lambda: trainer.team.agree(stop)):
                pass
        except of_all:
            raise SystemExit(2) from None
    return 128 + stop[0] if stop and trainer.counters.step < trainer.config.max_steps else 0


def _train(
    args: argparse.Namespace, trainer: "Trainer", start: "Start", console: PlainConsole, notices: PlainConsole
) -> int:
    """Train to the end or to a signal; returns the exit code."""
    import torch

    from charformer.device import memory_bytes
    from charformer.model.freeze import count_parameters
    from charformer.training.outcome import conclude, draw
    from kernels.backend import describe as describe_kernels

    run, counters, corpus, record = trainer.run, trainer.counters, trainer.corpus, start.record
    trainable, frozen = count_parameters(start.model)
    about = (
        f"{record['stage']} on {corpus.name} ({len(corpus.ids):,} characters, {len(corpus.alphabet)} distinct), "
        f"preset {record['preset']}, into {run.path}\n"
        f"{trainable:,} parameters train, {frozen:,} are frozen ({record['freeze']}); "
        f"{trainer.device.type}, {str(trainer.dtype).removeprefix('torch.')}"
    )
    console.print(printable(about))
    if args.verbose:
        notices.print(describe_kernels(trainer.device))
    if len(corpus.alphabet) == 1:
        notices.print("warning: the text has one distinct character; there is nothing to learn")

    display = TrainingDisplay(
        console,
        title=printable(f"{record['stage']} · {corpus.name} · {run.path}"),
        first_step=counters.step,
        max_steps=trainer.config.max_steps,
        characters_per_step=trainer.config.batch_size * start.model.config.block_size,
        memory=lambda: memory_bytes(trainer.device),
        history=[(row["step"], row["train_loss"], row["val_loss"]) for row in trainer.history],
    )
    teller = console if console.is_interactive else notices  # above the live panel, not through it
    is_patient = trainer.team.is_launched
    with stop_signals(teller, is_patient) as stop, display, torch.autograd.set_detect_anomaly(args.detect_anomaly):
        try:
            for progress in trainer.steps(lambda: trainer.team.agree(stop)):
                try:
                    display.update(progress)
                except BrokenPipeError:
                    stop.append(CLOSED_PIPE)
        except WriteError as error:
            raise UserError(f"{error}; {_rescued(trainer, start)}") from error
    try:
        draw(trainer, start)
    except Exception as error:  # whatever a font or a broken source run does to it, a picture is not worth the summary
        notices.print(f"warning: no {run.plot}: {error}")
    if stop and counters.step < trainer.config.max_steps:
        with suppress(OSError):
            notices.print(f"saved after step {counters.step:,}; to go on: {_again(record['stage'], run)}")
        return 128 + stop[0]

    with progress_bar(console) as on_progress:
        outcome = conclude(trainer, start, lambda done, total: on_progress("scoring the validation split", done, total))
    console.rule("sample")
    console.print(printable(outcome.sample.strip("\n")))
    console.rule()
    summary = {
        "val_loss": outcome.val_loss,
        **{key: vars(counters)[key] for key in ("best_step", "characters", "train_seconds", "eval_seconds")},
        "steps": counters.step,
        "trainable": trainable,
        "frozen": frozen,
        "peak_memory_bytes": memory_bytes(trainer.device),
        "out": str(run.path),
        "corpus": corpus.summary(),
    }
    _summarise(summary, record["stage"], run, console)
    if args.json:
        print(json.dumps(summary))
    return 0


def _again(stage: str, run: RunDir) -> str:
    """The command that continues a run."""
    return shlex.join(["charformer-train", "--stage", stage, "--resume", "--out", str(run.path)])


def _rescued(trainer: "Trainer", start: "Start") -> str:
    """What became of a training whose folder can no longer be written to."""
    from charformer.training import session

    if not trainer.counters.step:
        return "nothing was trained yet"
    try:
        run = session.rescue(trainer, start)
    except UserError as error:
        return f"the training could not be saved elsewhere: {error}"
    again = _again(start.record["stage"], run)
    return f"the training was saved in {run.path} instead, after step {trainer.counters.step:,}; to go on: {again}"


def _summarise(summary: dict[str, Any], stage: str, run: RunDir, console: PlainConsole) -> None:
    seconds = f"{summary['train_seconds']:.1f} s for {summary['characters']:,} characters"
    lines = {
        "validation loss": f"{summary['val_loss']:.4f} nats a character, whole split, best weights "
        f"(step {summary['best_step']:,})",
        "fine-tuning" if stage == "finetune" else "training": f"{seconds}, and {summary['eval_seconds']:.1f} s of "
        "evaluation on the way",
        "curves": str(run.plot),
        "run": str(run.path),
        "next": shlex.join(["charformer-sample", "--run", str(run.path)]),
    }
    for name, value in lines.items():
        console.print(f"{name:>16}  {value}")


def _open(
    args: argparse.Namespace, run: RunDir, team: Team, held: ExitStack, chosen: "Choice"
) -> "tuple[Trainer, Start]":
    """Open the run's folder, whose lock ``held`` then holds for the leader."""
    import torch

    from charformer import device as machine
    from charformer.training import session

    start, device, dtype = chosen
    team.check(start.config.batch_size, torch.cuda.device_count() if device.type == "cuda" else None)
    machine.keep_freed_memory()
    # Processes that torchrun has started again get the arguments that they had at first.
    is_begun = args.resume or (team.restarts > 0 and session.is_begun(start, run))
    if team.is_leader and not args.resume:
        held.enter_context(locked(run))
        if not is_begun:
            was_cut_off = team.restarts > 0 and not (
                run.state.is_file() or run.weights.is_file()
            )  # before its first save
            run.check_free(args.overwrite or was_cut_off)  # what another training has left there since
    open_run = session.reopen_run if is_begun else session.open_run
    return open_run(start, run, device, dtype, team), start


def _choose(
    args: argparse.Namespace,
    stage: str,
    run: RunDir,
    team: Team,
    console: PlainConsole,
    notices: PlainConsole,
    held: ExitStack,
) -> "Choice":
    """What to train on which device in which dtype: load the text, make or load the model."""
    check(args, stage, run, team)

    from charformer import device as machine
    from charformer.training import session

    changes = given(args, TRAIN_FIELDS)
    if args.resume:
        if team.is_leader:
            held.enter_context(locked(run))
        began_on = run.read_section("machine")
        device = machine.choose_device(str(began_on.get("device")) if args.device == "auto" else args.device)
        dtype = machine.choose_dtype(str(began_on.get("dtype")) if args.dtype == "auto" else args.dtype, device)
        data = args.data or _recorded_data(run.read_section("corpus"))
        start = session.resume(run, changes, _load(data, stage, console, notices))
    else:
        device = machine.choose_device(args.device)
        dtype = machine.choose_dtype(args.dtype, device)
        source = RunDir(args.init_from or "runs/pretrain")
        preset = args.preset or (session.preset_of(source) if stage == "finetune" else DEFAULT_PRESETS[device.type])
        shape = replace(PRESETS[preset].model, **given(args, MODEL_FIELDS))  # a fine-tune's is its checkpoint's
        course = replace(getattr(PRESETS[preset], stage), **changes)
        corpus = _load(args.data, stage, console, notices)
        if stage == "finetune":
            start = session.finetune(source, course, preset, args.freeze or "none", corpus)
        else:
            start = session.pretrain(shape, course, preset, corpus)
    if args.prompt is not None:
        sampler.encode_prompt(start.vocab, args.prompt)  # now, not at the end of a long training
        start.record["prompt"] = args.prompt
    return start, device, dtype


def _load(data: str | None, stage: str, console: PlainConsole, notices: PlainConsole) -> corpora.Corpus:
    with progress_bar(console) as on_progress:
        if data is not None:
            return corpora.load(data, on_progress)
        return corpora.load_or_stand_in(DEFAULT_DATA[stage], on_progress, lambda text: notices.print(f"note: {text}"))


def _recorded_data(recorded: dict[str, Any]) -> str:
    """What --data loads the text of a run again: a file by its path, anything else by its name."""
    source = str(recorded.get("source"))
    return source if Path(source).is_absolute() else str(recorded.get("name"))


if __name__ == "__main__":
    raise SystemExit(main())

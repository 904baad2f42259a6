"""The reports of charformer-train before and after the steps."""

import math
import shlex
import subprocess
import sys
from typing import Any

from charformer.data.division import tail_differs
from charformer.model.freeze import count_parameters
from charformer.runs.folder import RunDir
from charformer.training.session import TrainingSession
from charformer.ui.console import PlainConsole
from kernels import backend


def announce(session: TrainingSession, console: PlainConsole, notices: PlainConsole, verbose: bool) -> None:
    """Print the text, the model and the device of the training, and warnings about the text."""
    corpus, record, trainer = session.corpus, session.record, session.trainer
    trainable, frozen = count_parameters(session.model)
    console.print(
        f"{record.stage} on {corpus.name} ({len(corpus.ids):,} characters, {len(corpus.alphabet)} distinct), "
        f"preset {record.preset}, into {session.run.path}\n"
        f"{trainable:,} parameters train, {f'{frozen:,} are frozen ({record.freeze}); ' if frozen else ''}"
        f"{trainer.device.type}, {str(trainer.dtype).removeprefix('torch.')}"
    )
    if session.is_resumed and trainer.is_finished:
        at = f"{session.run.path} is finished: all of its {trainer.last_step:,} steps are taken"
        notices.print(f"note: {at}" + ("" if record.freeze == "all" else "; --steps N, above that, trains further"))
    if verbose:
        notices.print(backend.describe(trainer.device))
    if len(corpus.alphabet) == 1:
        notices.print("warning: the text has one distinct character; there is nothing to learn")
    if (distance := tail_differs(corpus)) is not None:
        notices.print(
            f"warning: the end of {corpus.name}, which validates, is unlike the rest: {distance:.0%} of its characters "
            "are out of proportion; --validation-split blocks takes blocks from all over the text"
        )


def continue_command(stage: str, run: RunDir) -> str:
    """Return the command that continues a run."""
    return _line("charformer-train", "--stage", stage, "--resume", "--out", str(run.path))


def print_summary(summary: dict[str, Any], session: TrainingSession, console: PlainConsole) -> None:
    """Print the losses, the time and the files of a finished training, and the command that samples from it."""
    run = session.run
    seconds = f"{summary['train_seconds']:.1f} s for {summary['characters']:,} characters"
    loss, scored = summary["val_loss"], summary["scored_characters"]
    score = "not scored"
    if loss is not None:
        is_whole = scored == session.trainer.scored_characters(None)
        score = f"{loss:.4f} nats, {loss / math.log(2):.3f} bits a character, "
        score += "whole split" if is_whole else f"{scored:,} characters of the split"
    lines = {
        "validation loss": f"{score}, best weights (step {summary['best_step']:,})",
        "fine-tuning" if session.record.stage == "finetune" else "training": f"{seconds}, and "
        f"{summary['eval_seconds']:.1f} s of evaluation on the way",
        "curves": str(run.plot),
        "run": str(run.path),
        "next": _line("charformer-sample", "--run", str(run.path)),
    }
    for name, value in lines.items():
        console.print(f"{name:>16}  {value}")


def _line(*words: str) -> str:
    """Return a command as one types it, for cmd.exe and PowerShell on Windows, and elsewhere for a POSIX shell."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)

"""The report of ``charformer-train --plan``."""

import argparse
import json
from typing import Any

import torch

from charformer.device import keep_freed_memory
from charformer.training import estimate
from charformer.training.session import TrainingSession
from charformer.ui.console import PlainConsole, duration, progress_bar

MIB = 2**20
USEFUL_BATCH = 4096  # sequences; a larger step is of no practical use


def show_plan(args: argparse.Namespace, session: TrainingSession, console: PlainConsole) -> int:
    """Count the memory, train for some seconds without saving, print the estimate, and return the exit code."""
    keep_freed_memory()
    trainer, training = session.trainer, session.record.training
    device, batch_size = trainer.device, training.batch_size
    tables = trainer.prior.bytes() if trainer.prior else 0
    found = estimate.memory(session.model, training, trainer.dtype, device.type == "cuda", batch_size, tables)
    on_card = estimate.memory(session.model, training, torch.bfloat16, fused=True)
    available = estimate.available_bytes(device)
    speed = None
    if not trainer.is_finished and (available is None or found.of(batch_size) <= available):
        with progress_bar(console) as on_progress:
            speed = estimate.probe(
                trainer,
                on_step=lambda share: on_progress("training for a while", int(100 * share), 100),
                scored=args.score_characters,
            )
    counting = trainer.prior.tables.seconds if trainer.prior else None
    content = {"counting_seconds": counting} | estimate.summary(
        training, session.model, found, on_card, available, speed
    )
    about = f"{device.type}, {str(trainer.dtype).removeprefix('torch.')}"
    for name, value in _lines(content, session.record.preset, session.corpus.name, about).items():
        console.print(f"{name:>16}  {value}")
    if args.json:
        print(json.dumps(content))
    return 0


def _lines(content: dict[str, Any], preset: str, text: str, about: str) -> dict[str, str]:
    memory, batch = content["memory"], content["batch_size"]
    lines = {
        "plan": f"preset {preset} on {text}; {about}; nothing is saved",
        "parameters": f"{content['trainable']:,} train, {content['frozen']:,} are frozen",
        "memory": f"{content['memory_bytes'] / MIB:,.0f} MiB: weights {memory['weights'] / MIB:,.0f}, gradients "
        f"{memory['gradients'] / MIB:,.0f}, optimizer {memory['optimizer'] / MIB:,.0f}, and "
        f"{memory['sequence'] / MIB:,.1f} for each of {batch} sequences",
    }
    if content["counting_seconds"] is not None:
        lines["n-gram prior"] = f"{memory['tables'] / MIB:,.0f} MiB, counted in {content['counting_seconds']:,.1f} s"
    if content["fits"] is not None:
        verdict = "fits" if content["fits"] else "does not fit"
        most = content["largest_batch"]
        hint = f"; --batch-size {most:,} is the most that does" if most else "; not even one sequence does"
        if content["fits"] and most > USEFUL_BATCH:
            hint = ""
        lines["here"] = f"{verdict} into the {content['available_bytes'] / 2**30:.1f} GiB of this machine{hint}"
    cards = [f"{size}: {_card(most, batch)}" for size, most in content["largest_batch_on_card"].items()]
    lines["on a GPU"] = f"in bfloat16, computed: {'; '.join(cards)}"
    if content["chars_per_second"] is not None:
        evaluation, scoring = content["eval_seconds"], content["score_seconds"]
        total = content["train_seconds"] + evaluation + scoring
        lines["speed"] = f"{content['chars_per_second']:,.0f} characters/s, median of {content['probed_steps']} steps"
        lines["time"] = f"{duration(total)} for {content['steps']:,} steps, {duration(evaluation)} of it evaluations, "
        lines["time"] += f"{duration(scoring)} the score at the end"
    return lines


def _card(most: int, batch: int) -> str:
    return f"{'fits' if most >= batch else 'does not fit'}, up to {most:,} sequences"

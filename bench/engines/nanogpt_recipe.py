"""nanoGPT's published recipe for a character-level model on a CPU, from the user's own checkout."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.engines import train_nanogpt
from bench.engines.plain import PlainEngine
from bench.engines.variant import Variant
from bench.harness import results
from charformer.config import ModelConfig
from charformer.data.corpus import Corpus

# These settings are in its README; all others are its settings for Tiny Shakespeare.
SHAPE = ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, dropout=0.0, attention_dropout=0.0)
BATCH_SIZE = 12
STEPS = 2000
WARMUP_STEPS = 100
MIN_SHARE = 0.1  # of the peak learning rate, at which the cosine ends
PROBED = 200  # steps that are timed to find how many fit into a given time
CPU = torch.device("cpu")


def train(
    corpus: Corpus,
    checkout: Path,
    seconds: float | None = None,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train the recipe's 2,000 steps in float32, or as many as fit into ``seconds``, and fit the schedule to them.

    Return a row of a result, whose ``end`` has the step, characters, seconds and loss at the end.

    Only steps are timed. The loss is that of the last weights over the whole validation split, in windows of the
    recipe's 64 characters. ``on_step`` receives the number of steps done and their total.

    Raise UserError if ``checkout`` has no model.py.
    """
    steps = STEPS
    if seconds is not None:
        probe = _build(corpus, checkout)
        each = [_step(probe, train_nanogpt.LEARNING_RATE) for _ in range(PROBED)]
        steps = max(1, round(seconds / median(each[PROBED // 2 :])))
    engine = _build(corpus, checkout)
    samples = []
    for step in range(steps):
        samples.append(_step(engine, learning_rate(step, steps)))
        on_step(step + 1, steps)
    characters = BATCH_SIZE * SHAPE.block_size
    loss = whole_validation_loss(engine, corpus)
    end = {"step": steps, "characters": steps * characters, "seconds": sum(samples), "val_loss": loss}
    return results.row(
        engine="nanogpt",
        preset="its recipe for a CPU" if seconds is None else "its recipe for a CPU, as long as ours",
        precision="float32",
        batch=BATCH_SIZE,
        context=SHAPE.block_size,
        threads=torch.get_num_threads(),
        freeze="none",
        chars_per_second=results.percentiles([characters / sample for sample in samples]),
        samples=steps,
        parameters=sum(parameter.numel() for parameter in engine.model.parameters()),
        reached=None,
        end=end,
        val_loss=loss,
        curve=[end],
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine down to a tenth of the peak."""
    peak = train_nanogpt.LEARNING_RATE
    if step < WARMUP_STEPS:
        return peak * (step + 1) / (WARMUP_STEPS + 1)
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (MIN_SHARE + (1 - MIN_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.inference_mode()
def whole_validation_loss(engine: PlainEngine, corpus: Corpus) -> float:
    """Return the loss in nats a character, computed as in ``Trainer.whole_validation_loss``."""
    engine.model.eval()
    ids = torch.from_numpy(corpus.validation.astype(np.int64))
    length = SHAPE.block_size
    total = 0.0
    for start in range(0, len(ids) - 1, length):
        window = ids[None, start : start + length + 1]
        total += float(engine.loss((window[:, :-1], window[:, 1:]))) * (window.shape[1] - 1)
    return total / (len(ids) - 1)


def _build(corpus: Corpus, checkout: Path) -> PlainEngine:
    torch.manual_seed(1337)
    shape = replace(SHAPE, vocab_size=len(corpus.alphabet))
    engine = train_nanogpt.build(Variant("nanogpt", "nano", shape, BATCH_SIZE), corpus, CPU, checkout)
    engine.model.train()
    return engine


def _step(engine: PlainEngine, rate: float) -> float:
    """Train on one batch with the learning rate ``rate``; return the seconds."""
    began = time.perf_counter()
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    engine.loss(engine.batch()).backward()  # type: ignore[no-untyped-call]
    engine.update()
    return time.perf_counter() - began

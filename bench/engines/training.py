"""Train one variant and time the parts of its steps; bench.harness.worker runs this module.

Requests are "check" and "steps SECONDS", which is answered with a list of [data, forward, backward, optimizer] seconds
and those of an evaluation. The engine `matmuls` trains nothing, and answers with the speed of matrix products.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.engines import baseline, train_nanogpt, train_transformers
from bench.engines.matmuls import MatMuls
from bench.engines.plain import PlainEngine
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Variant
from bench.harness.timing import between, marker, seconds_of
from charformer.data.cached import find_cached
from charformer.data.corpus import Corpus
from charformer.device import choose_device, memory_bytes, synchronize

CHECK_STEPS = 20
CHECK_BATCH, CHECK_CONTEXT = 4, 64  # small, since a whole step of the largest model takes seconds on a small machine
CHECK_DROP = 0.1  # nats; from random weights the loss falls far more in the first steps
MIN_STEPS, MAX_STEPS = 2, 400  # in a turn
WARM_SECONDS = 0.5

Engine = CharformerEngine | PlainEngine
Answer = dict[str, Any]
Handler = Callable[..., Answer]
Step = Callable[[Callable[[], None]], object]  # calls its argument after each of its parts


def handler(variant: dict[str, Any], corpus: dict[str, Any], device: str, nanogpt: str | None = None) -> Handler:
    """Return a function that answers requests about a variant.

    Args:
        variant: a ``Variant`` as a dictionary.
        corpus: the summary of a text that is in the cache.
        nanogpt: a checkout of nanoGPT, for the engine of that name.
    """
    torch.manual_seed(0)
    chosen, place = Variant.from_dict(variant), choose_device(device)
    if chosen.engine == "matmuls":
        return _giving_memory_back(_matmuls(chosen, place), place)
    text = find_cached(corpus)
    assert text is not None, "the bench has just encoded it"
    engine = _build(chosen, text, place, Path(nanogpt or ""))
    return _giving_memory_back(_training(chosen, place, engine), place)


def _build(variant: Variant, corpus: Corpus, device: torch.device, nanogpt: Path) -> Engine:
    if variant.engine == "charformer":
        return CharformerEngine(variant, corpus, device)
    if variant.engine == "nanogpt":
        return train_nanogpt.build(variant, corpus, device, nanogpt)
    if variant.engine == "transformers":
        return train_transformers.build(variant, corpus, device)
    model = baseline.Baseline(variant.model).to(device)
    return PlainEngine(variant, corpus, device, model, partial(baseline.loss, model), baseline.optimizer(model))


def _matmuls(variant: Variant, device: torch.device) -> Handler:
    matmuls = MatMuls(variant, device)

    def answer(request: str, seconds: str = "0") -> Answer:
        steps = {"steps": _turn(matmuls.step, device, float(seconds))} if request == "steps" else {}
        return steps | {"flops_per_second": matmuls.peak()}

    return answer


def _training(variant: Variant, device: torch.device, engine: Engine) -> Handler:
    def step(mark: Callable[[], None]) -> None:
        batch = engine.batch()
        mark()
        loss = engine.loss(batch)
        mark()
        loss.backward()  # type: ignore[no-untyped-call]
        mark()
        engine.update()
        mark()

    def answer(request: str, seconds: str = "0") -> Answer:
        if request == "check":
            found = check(engine)
            if variant.compiled:
                engine.model.compile(dynamic=False)
            first = sum(_timed(step, device, 1)[0])
            if variant.compiled:
                engine.evaluate()  # compiles once more
            return found | {"first_step_seconds": first}
        timed: Answer = {"steps": _turn(step, device, float(seconds))}
        timed |= {"peak_memory_bytes": memory_bytes(device), "threads": torch.get_num_threads()}
        if variant.freeze == "none":
            timed["evaluation"] = [seconds_of(engine.evaluate, device) for _ in range(2)][1]  # the first is a warm-up
        return timed

    return answer


def check(engine: Engine) -> Answer:
    """Train on one small batch, and return the loss before and after. Raise ValueError unless it falls."""
    batch = engine.batch()
    # Cut from the end, since targets may make a tensor one character longer.
    cut = max(0, batch[0].shape[1] - CHECK_CONTEXT)
    batch = tuple(tensor[:CHECK_BATCH, : tensor.shape[1] - cut].contiguous() for tensor in batch)
    losses = []
    for _ in range(CHECK_STEPS):
        loss = engine.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        engine.update()
        losses.append(float(loss.detach()))
    before, after = mean(losses[:2]), mean(losses[-2:])
    if not after < before - CHECK_DROP:
        raise ValueError(f"does not learn: its loss went from {before:.3f} to {after:.3f}")
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    return {"parameters": parameters, "loss_before": before, "loss_after": after}


def _turn(step: Step, device: torch.device, seconds: float) -> list[list[float]]:
    """Take steps for about ``seconds``, after a warm-up that is not counted, in which memory is allocated again."""
    last = warm = 0.0
    while warm < WARM_SECONDS:
        last = sum(_timed(step, device, 1)[0])
        warm += last
    return _timed(step, device, min(MAX_STEPS, max(MIN_STEPS, round(seconds / last))))


def _timed(step: Step, device: torch.device, count: int) -> list[list[float]]:
    """Return the seconds of each part of ``count`` steps; a GPU is awaited only at the end."""
    marks = [marker(device)]
    for _ in range(count):
        step(lambda: marks.append(marker(device)))
    synchronize(device)
    laps = [between(*pair) for pair in pairwise(marks)]
    parts = len(laps) // count
    return [laps[first : first + parts] for first in range(0, len(laps), parts)]


def _giving_memory_back(answer: Handler, device: torch.device) -> Handler:
    """Return ``answer`` wrapped so that it frees memory after each request: all engines at once might not fit."""

    def handle(*request: str) -> Answer:
        found = answer(*request)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif malloc_trim := sys.platform == "linux" and getattr(ctypes.CDLL(None), "malloc_trim", None):
            malloc_trim(0)
        return found

    return handle

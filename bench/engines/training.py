"""One variant in a process of its own.

    python -m bench.engines.training VARIANT CORPUS DEVICE [CHECKOUT]

VARIANT and CORPUS are JSON: an engine.Variant, and the summary of a corpus that is in the cache. The engine `products`
is no engine: it answers with the speed of matrix products. Each line of stdin is a request, each line of stdout its
answer: "check", "steps SECONDS" (a list of [data, forward, backward, optimizer] seconds), "evaluate".
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.engines import train_baseline, train_nanogpt, train_transformers
from bench.engines.matmuls import Products
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Engine, Variant
from charformer.data.corpus import recall
from charformer.device import choose_device, memory_bytes

CHECK_STEPS = 20
CHECK_BATCH, CHECK_CONTEXT = 4, 64  # small, since a whole step of the largest takes ten seconds on two cores
CHECK_DROP = 0.1  # nats; the first steps from random weights lose far more
LEAST_STEPS, MOST_STEPS = 2, 400  # in a turn
WARM_SECONDS = 0.5

Answer = dict[str, Any]
Step = Callable[[Callable[[], None]], object]  # calls what it is given behind each of its parts


def main() -> None:
    """Build the variant, then answer each line of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the bench's to answer
    variant, summary, device = Variant.from_json(sys.argv[1]), json.loads(sys.argv[2]), choose_device(sys.argv[3])
    checkout = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    torch.manual_seed(0)
    answers = sys.stdout
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # for what an engine prints
        try:
            answer = _speaker(variant, summary, device, checkout)
            for line in sys.stdin:
                found = answer(*line.split())
                _give_memory_back(device)
                print(json.dumps(found), file=answers, flush=True)
        except Exception as error:
            print(json.dumps({"error": _in_short(error)}), file=answers, flush=True)


def _speaker(
    variant: Variant, summary: dict[str, Any], device: torch.device, checkout: Path | None
) -> Callable[..., Answer]:
    if variant.engine == "products":
        products = Products(variant, device)

        def answer_products(request: str, seconds: str = "0") -> Answer:
            steps = {"steps": _turn(products.step, device, float(seconds))} if request == "steps" else {}
            return steps | {"flops_per_second": products.peak()}

        return answer_products
    corpus = recall(summary)
    assert corpus is not None, "the bench has just encoded it"
    engine: Engine
    if variant.engine == "charformer":
        engine = CharformerEngine(variant, corpus, device)
    elif variant.engine == "nanogpt":
        assert checkout is not None
        engine = train_nanogpt.build(variant, corpus, device, checkout)
    else:
        build = {"baseline": train_baseline.build, "transformers": train_transformers.build}[variant.engine]
        engine = build(variant, corpus, device)

    def step(mark: Callable[[], None]) -> None:
        batch = engine.batch()
        mark()
        loss = engine.loss(batch)
        mark()
        loss.backward()  # type: ignore[no-untyped-call]
        mark()
        engine.update()
        mark()

    def evaluation(mark: Callable[[], None]) -> None:
        engine.evaluate()
        mark()

    def answer(request: str, seconds: str = "0") -> Answer:
        if request == "check":
            found = check(engine)
            if variant.compiled:
                engine.model.compile(dynamic=False)
            first = sum(_timed(step, device, 1)[0])
            if variant.compiled:
                engine.evaluate()  # which compiles once more
            return found | {"first_step_seconds": first}
        if request == "evaluate":
            _timed(evaluation, device, 1)  # its memory was given back, and comes again before the one that counts
            return {"seconds": _timed(evaluation, device, 1)[0][0]}
        steps = _turn(step, device, float(seconds))
        memory = {"peak_memory_bytes": memory_bytes(device), "threads": torch.get_num_threads()}
        if device.type == "cuda":
            memory["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        return {"steps": steps} | memory

    return answer


def check(engine: Engine) -> Answer:
    """Train on one small batch, and see the loss fall. Raises ValueError where it does not."""
    batch = tuple(tensor[:CHECK_BATCH, :CHECK_CONTEXT].contiguous() for tensor in engine.batch())
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
    """Steps for about ``seconds``, behind a warm-up that is not counted, since it fetches its memory anew."""
    last = warm = 0.0
    while warm < WARM_SECONDS:
        last = sum(_timed(step, device, 1)[0])
        warm += last
    return _timed(step, device, min(MOST_STEPS, max(LEAST_STEPS, round(seconds / last))))


def _timed(step: Step, device: torch.device, count: int) -> list[list[float]]:
    """Seconds of each part of ``count`` steps. A GPU is waited for only at the end, and its own time is what counts."""
    marks: list[Any] = []

    def mark() -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            marks.append(event)
        else:
            marks.append(time.perf_counter())

    mark()
    for _ in range(count):
        step(mark)
    if device.type == "cuda":
        torch.cuda.synchronize()
        laps = [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(marks)]
    else:
        laps = [end - begin for begin, end in pairwise(marks)]
    parts = len(laps) // count
    return [laps[first : first + parts] for first in range(0, len(laps), parts)]


def _give_memory_back(device: torch.device) -> None:
    """While the others have their turn: all of them at once might not fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif malloc_trim := sys.platform == "linux" and getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def _in_short(error: Exception) -> str:
    """OOM, or what went wrong in one line."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in text:
        return "OOM"
    return f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else 'no message'}"[:300]


if __name__ == "__main__":
    main()

"""The answers of every sampler in bench.sampling; this file needs nothing but Python, for the peers' environment."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[..., dict[str, Any]]
WARM_SECONDS = 0.5
SLOW_SECONDS = 2.0


def answer(generate: Callable[[bool], list[int]]) -> Handler:
    """Return a handler that answers "greedy" and "sample COUNT" with {seconds, ids, peak_memory_bytes}.

    ``seconds`` has an entry for each text. Before the texts of "sample" come some for half a second that do not count.
    During the other samplers' turns the processor's caches filled with their weights, and the threads of the last one
    may still be spinning for some tenths of a second. A sampler that takes two seconds for a text needs no warm-up.

    Args:
        generate: takes whether to pick greedily, and returns the ids of the first text.
    """
    last = 0.0

    def timed(greedy: bool) -> list[int]:
        nonlocal last
        began = time.perf_counter()
        ids = generate(greedy)
        last = time.perf_counter() - began
        return ids

    def handle(request: str, count: str = "1") -> dict[str, Any]:
        until = time.monotonic() + WARM_SECONDS
        while request == "sample" and time.monotonic() < until and last < SLOW_SECONDS:
            timed(False)
        seconds = []
        for _ in range(int(count)):
            ids = timed(request == "greedy")
            seconds.append(last)
        return {"seconds": seconds, "ids": ids, "peak_memory_bytes": peak_memory_bytes()}

    return handle


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process, or None where /proc does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

"""The answers of every sampler in bench.sampling; this file needs nothing but Python, for the peers' environment."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[str], dict[str, Any]]


def answer(generate: Callable[[bool], list[int]]) -> Handler:
    """Return a handler that answers "sample" and "greedy" with {seconds, ids, peak_memory_bytes}.

    Args:
        generate: takes whether to pick greedily, and returns the ids of the first text.
    """

    def handle(request: str) -> dict[str, Any]:
        began = time.perf_counter()
        ids = generate(request == "greedy")
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "ids": ids, "peak_memory_bytes": peak_memory_bytes()}

    return handle


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process, or None where /proc does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

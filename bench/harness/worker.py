"""What every sampler that is measured does: generate once for each line of stdin, and answer with a line of JSON.

This file needs nothing but Python: it also runs in the peers' environment.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(generate: Callable[[bool], list[int]]) -> None:
    """Answer "sample" and "greedy" with {seconds, ids, peak_memory_bytes}: the first text's ids, wall time."""
    for line in sys.stdin:
        began = time.perf_counter()
        ids = generate(line.strip() == "greedy")
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "ids": ids, "peak_memory_bytes": peak_memory_bytes()}), flush=True)


def peak_memory_bytes() -> int | None:
    """The most that this process ever had resident, where /proc says so."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None

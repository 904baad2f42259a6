"""Timing by the GPU's own events, or by the clock on a CPU."""

import time
from collections.abc import Callable
from typing import Any

import torch

from charformer.device import synchronize
from charformer.training.cuda_graph import side_stream

FLUSH_BYTES = 2**28  # more than any level-2 cache
WARM_UP = 3


def marker(device: torch.device) -> Any:
    """Return an event that has just been recorded or, on a CPU, the time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Return the seconds between two markers; the device must have been awaited since the second."""
    return end - start if isinstance(start, float) else float(start.elapsed_time(end)) / 1e3


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, and wait for its end."""
    start = marker(device)
    work()
    end = marker(device)
    synchronize(device)
    return between(start, end)


def as_graph(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the replay of ``work`` as a CUDA graph, which has no launch overhead, or on a CPU ``work`` itself."""
    if device.type != "cuda":
        return work
    with side_stream():
        for _ in range(WARM_UP):
            work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def cold_seconds(work: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Return the seconds of each of ``rounds`` calls, each with a cold level-2 cache."""
    flush = torch.empty(FLUSH_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)
    for _ in range(WARM_UP):
        work()
    pairs = []
    for _ in range(rounds):
        flush.zero_()
        start = marker(device)
        work()
        pairs.append((start, marker(device)))
    synchronize(device)
    return [between(*pair) for pair in pairs]

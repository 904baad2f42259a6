"""Samplers as entries that take turns of one text each, and the rows of their results."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from bench.harness import results
from bench.harness.interleave import Entry, Worker, WorkerError, interleave
from charformer.errors import UserError

THREADS = (1, 2)
PROBES = 5  # texts that are timed for each number of threads, to choose the faster
WARM_SECONDS = 0.5
SLOW_SECONDS = 2.0


@dataclass
class SamplingEntry(Entry):
    """A sampler, and its results so far.

    Attributes:
        module: the module that the worker loads; its handler takes ``options``, ``threads`` and ``batch``.
        samples: characters a second by turn, summed over the texts of a batch.
        greedy: the ids of the first text at temperature 0.
    """

    engine: str
    precision: str
    module: str
    options: dict[str, Any]
    batch: int = 1
    temperature: float = 1.0
    speculative: bool = False
    python: str = sys.executable
    threads: int = 1
    samples: list[float] = field(default_factory=list)
    greedy: list[int] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    text_seconds: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.engine} {self.precision}"

    def start(self) -> Worker:
        given = {"threads": self.threads, "batch": self.batch}
        return Worker(self.module, self.options | given, self.python)

    def begin(self, worker: Worker) -> None:
        """Keep a greedy text."""
        answer = worker.ask("greedy")
        self.greedy, self.text_seconds = answer["ids"], answer["seconds"]

    def turn(self, worker: Worker) -> None:
        """Warm up, then sample once."""
        self.warm_up(worker)
        self.sample(worker)

    def warm_up(self, worker: Worker) -> None:
        """Sample for half a second that does not count.

        During the other samplers' turns the processor's caches filled with their weights, and the threads of the last
        one may still be spinning for some tenths of a second. A sampler that takes two seconds for a text needs no
        warm-up.
        """
        until = time.monotonic() + WARM_SECONDS
        while time.monotonic() < until and self.text_seconds < SLOW_SECONDS:
            self.text_seconds = worker.ask("sample")["seconds"]

    def sample(self, worker: Worker) -> None:
        """Sample once, and keep the characters a second."""
        answer = worker.ask("sample")
        self.text_seconds, self.peak_memory_bytes = answer["seconds"], answer["peak_memory_bytes"]
        self.samples.append(self.batch * len(answer["ids"]) / answer["seconds"])

    def row(self, part: str, preset: str, context: int) -> dict[str, Any]:
        """Return a row of the result."""
        return results.row(
            part=part,
            engine=self.engine,
            preset=preset,
            precision=self.precision,
            batch=self.batch,
            context=context,
            threads=self.threads,
            chars_per_second=results.percentiles(self.samples),
            samples=len(self.samples),
            turns=self.samples,
            peak_memory_bytes=self.peak_memory_bytes,
            temperature=self.temperature,
            speculative=self.speculative,
        )


def interleave_samplers(entries: list[SamplingEntry], rounds: int, done: Callable[[str], None]) -> list[SamplingEntry]:
    """Return the entries after all took turns, each with its best number of threads. Raise UserError if one fails."""
    best = []
    for entry in entries:
        trials = [measure_alone(entry, threads, PROBES) for threads in THREADS]
        threads = max(trials, key=lambda trial: median(trial.samples)).threads
        best.append(replace(entry, threads=threads, samples=[]))
        done(f"threads of {entry.label}")
    interleave(best, rounds, done)
    for entry in best:
        if entry.error:
            raise UserError(f"{entry.label}: {entry.error}")
    return best


def measure_alone(entry: SamplingEntry, threads: int, texts: int) -> SamplingEntry:
    """Return the entry after ``texts`` texts while nothing else runs. Raise UserError if it fails."""
    found = replace(entry, threads=threads, samples=[])
    try:
        with found.start() as worker:
            found.begin(worker)
            found.warm_up(worker)
            for _ in range(texts):
                found.sample(worker)
    except WorkerError as error:
        raise UserError(f"{found.label}: {error}") from error
    return found

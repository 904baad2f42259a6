"""Samplers as entries that take turns of one text each, and the rows of their results."""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from bench.harness import results
from bench.harness.interleave import Entry, interleave
from charformer.errors import UserError

THREADS = (1, 2)
PROBES = 5  # texts that are timed for each number of threads, to choose the faster


class SamplingEntry(Entry):
    """A sampler of ``batch`` texts at once.

    Args:
        module: the module that the worker loads; its handler takes ``options``, ``threads`` and ``batch``.
        texts: the texts of a turn that are timed.
    """

    def __init__(
        self,
        engine: str,
        precision: str,
        module: str,
        options: dict[str, Any],
        batch: int = 1,
        python: str = sys.executable,
        threads: int = 1,
        texts: int = 1,
    ) -> None:
        self.engine, self.precision, self.batch, self.threads = engine, precision, batch, threads
        self._given = (engine, precision, module, options, batch, python)
        given = options | {"threads": threads, "batch": batch}
        super().__init__(f"{engine} {precision}", module, given, "greedy", f"sample {texts}", python)

    def with_threads(self, threads: int, texts: int = 1) -> "SamplingEntry":
        """Return the same sampler with other threads and texts, and without results."""
        return SamplingEntry(*self._given, threads, texts)

    @property
    def greedy(self) -> list[int]:
        """Return the ids of a text at temperature 0."""
        return list(self.answers[0]["ids"])

    @property
    def samples(self) -> list[float]:
        """Return the characters a second of each text, summed over a batch."""
        return [self.batch * len(turn["ids"]) / seconds for turn in self.turns for seconds in turn["seconds"]]

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
            peak_memory_bytes=self.turns[-1]["peak_memory_bytes"],
            temperature=self.options.get("temperature", 1.0),
            speculative=self.options.get("speculative", False),
        )


def interleave_samplers(
    entries: list[SamplingEntry], rounds: int, on_progress: Callable[[str, int, int], None]
) -> list[SamplingEntry]:
    """Return the entries after all took turns, each with its best number of threads. Raise UserError if one fails."""
    best = []
    for number, entry in enumerate(entries):
        on_progress(f"threads of {entry.label}", number, len(entries))
        trials = [measure_alone(entry, threads, PROBES) for threads in THREADS]
        best.append(entry.with_threads(max(trials, key=lambda trial: median(trial.samples)).threads))
    _measure(best, rounds, on_progress)
    return best


def measure_alone(entry: SamplingEntry, threads: int, texts: int) -> SamplingEntry:
    """Return the entry after ``texts`` texts while nothing else runs. Raise UserError if it fails."""
    found = entry.with_threads(threads, texts)
    _measure([found], 1)
    return found


def _measure(
    entries: list[SamplingEntry], rounds: int, on_progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    interleave(entries, rounds, on_progress)
    for entry in entries:
        if entry.error:
            raise UserError(f"{entry.label}: {entry.error}")

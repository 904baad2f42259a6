"""Samplers as entries that take turns of one text each, and the rows of their results."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bench.harness import results
from bench.harness.interleave import Entry, interleave
from charformer.errors import UserError

THREADS = (1, 2)
PROBES = 5  # texts that are timed for each number of threads, to choose the faster


@dataclass
class SamplingEntry(Entry):
    """A sampler of ``batch`` texts at once; the handler of its module takes ``options``, ``threads`` and ``batch``."""

    engine: str
    precision: str
    batch: int = 1
    threads: int = 1
    texts: int = 1  # that are timed in a turn

    def __post_init__(self) -> None:
        self.label = f"{self.engine} {self.precision}"
        self.options = self.options | {"threads": self.threads, "batch": self.batch}
        self.first, self.request = "greedy", f"sample {self.texts}"

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
        fastest = max(trials, key=lambda trial: median(trial.samples))
        best.append(replace(fastest, texts=1, answers=[]))
    _measure(best, rounds, on_progress)
    return best


def measure_alone(entry: SamplingEntry, threads: int, texts: int) -> SamplingEntry:
    """Return the entry after ``texts`` texts while nothing else runs. Raise UserError if it fails."""
    found = replace(entry, threads=threads, texts=texts, answers=[])
    _measure([found], 1)
    return found


def _measure(
    entries: list[SamplingEntry], rounds: int, on_progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    interleave(entries, rounds, on_progress)
    for entry in entries:
        if entry.error:
            raise UserError(f"{entry.label}: {entry.error}")

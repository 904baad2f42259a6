"""Samplers as processes that take turns."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

from bench.harness import results
from bench.harness.interleave import Conversation, StoppedError
from charformer.errors import UserError

THREADS = (1, 2)
PROBES = 5  # texts whose median chooses a sampler's threads
WARM_SECONDS = 0.5
SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Sampler:
    """What to start, ``{threads}`` to be filled in, and what its row says."""

    engine: str
    precision: str
    command: list[str]
    batch: int = 1
    temperature: float = 1.0
    speculative: bool = False


@dataclass
class Process:
    """A sampler that is running; a context."""

    sampler: Sampler
    threads: int
    samples: list[float] = field(default_factory=list)
    greedy: list[int] = field(default_factory=list)
    peak_memory_bytes: int | None = None

    def __enter__(self) -> Self:
        command = [part.replace("{threads}", str(self.threads)) for part in self.sampler.command]
        quiet = {"ORT_DISABLE_TELEMETRY": "1"}  # genai's too
        with ExitStack() as stack:
            self._conversation = stack.enter_context(Conversation(command, quiet))
            answer = self._ask("greedy")
            self.greedy, self._text_seconds = answer["ids"], answer["seconds"]
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def warm_up(self) -> None:
        """Generate for half a second that does not count.

        While the others had their turn the processor's caches filled with their weights, and the threads of the last of
        them may go on spinning for some tenths of a second. One whose text takes two seconds needs none.
        """
        until = time.monotonic() + WARM_SECONDS
        while time.monotonic() < until and self._text_seconds < SLOW_SECONDS:
            self._text_seconds = self._ask("sample")["seconds"]

    def sample(self) -> float:
        """Generate; keeps and returns the characters a second, of all texts together."""
        answer = self._ask("sample")
        self._text_seconds, self.peak_memory_bytes = answer["seconds"], answer["peak_memory_bytes"]
        self.samples.append(self.sampler.batch * len(answer["ids"]) / answer["seconds"])
        return self.samples[-1]

    def row(self, part: str, preset: str, context: int) -> dict[str, Any]:
        """One row of the result file."""
        return results.row(
            part=part,
            engine=self.sampler.engine,
            preset=preset,
            precision=self.sampler.precision,
            batch=self.sampler.batch,
            context=context,
            threads=self.threads,
            chars_per_second=results.percentiles(self.samples),
            samples=len(self.samples),
            turns=self.samples,
            peak_memory_bytes=self.peak_memory_bytes,
            temperature=self.sampler.temperature,
            speculative=self.sampler.speculative,
        )

    def _ask(self, word: str) -> dict[str, Any]:
        try:
            return self._conversation.ask(word)
        except StoppedError as error:
            raise UserError(f"{self.sampler.engine} {self.sampler.precision} {error}") from error


def contest(samplers: list[Sampler], rounds: int, done: Callable[[str], None]) -> list[Process]:
    """Each sampler at its best number of threads, one text each in turn, ``rounds`` times."""
    processes = []
    for sampler in samplers:
        trials = [alone(sampler, threads, PROBES) for threads in THREADS]
        processes.append(Process(sampler, max(trials, key=lambda trial: median(trial.samples)).threads))
        done(f"threads of {sampler.engine} {sampler.precision}")
    with ExitStack() as running:
        for process in processes:
            running.enter_context(process)
        for turn in range(rounds):
            for process in processes:
                process.warm_up()
                process.sample()
                done(f"round {turn + 1}: {process.sampler.engine} {process.sampler.precision}")
    return processes


def alone(sampler: Sampler, threads: int, texts: int) -> Process:
    """One sampler while nothing else runs."""
    with Process(sampler, threads) as process:
        process.warm_up()
        for _ in range(texts):
            process.sample()
    return process

"""Variants in training that take turns."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.engines.variant import Variant
from bench.harness import flops, results
from bench.harness.interleave import Conversation, StoppedError

PARTS = ("data", "forward", "backward", "optimizer")
KILLED = -9  # by the system, when memory runs out


@dataclass
class Contestant:
    """A variant, and what was found of it so far; ``error`` is why it stopped, "OOM" for want of memory."""

    variant: Variant
    facts: dict[str, Any] = field(default_factory=dict)
    turns: list[list[list[float]]] = field(default_factory=list)  # seconds by turn, step and part
    evaluations: list[float] = field(default_factory=list)  # seconds of one batch's
    error: str | None = None

    @property
    def steps(self) -> list[list[float]]:
        """Seconds by step and part."""
        return [step for turn in self.turns for step in turn]

    @property
    def step_seconds(self) -> float | None:
        """The median; None for one that was never timed."""
        return median(map(sum, self.steps)) if self.turns else None

    @property
    def noise(self) -> float:
        """The slowest turn's median time to the fastest one's."""
        medians = [median(map(sum, turn)) for turn in self.turns]
        return max(medians) / min(medians) if medians else 1.0

    def row(self, part: str, peaks: dict[str, float], **more: Any) -> dict[str, Any]:
        """A row of the result; ``peaks`` are FLOP/s of matrix products by dtype."""
        variant, step = self.variant, self.step_seconds
        speeds = [variant.characters / sum(parts) for parts in self.steps]
        mfu = None
        if step and variant.engine != "products" and variant.precision in peaks:
            work = flops.per_character(variant.model, variant.freeze) * variant.characters
            mfu = work / step / peaks[variant.precision]
        parts = None
        if step and variant.engine != "products":
            parts = {name: median(column) for name, column in zip(PARTS, zip(*self.steps, strict=True), strict=True)}
            parts["evaluation"] = median(self.evaluations) if self.evaluations else None
        return results.row(
            part=part,
            engine=variant.engine,
            preset=variant.preset,
            precision=variant.precision,
            batch=variant.batch_size,
            context=variant.model.block_size,
            width=variant.model.n_embd,
            dropout=variant.model.dropout,
            freeze=variant.freeze,
            compiled=variant.compiled,
            differs=variant.differs,
            chars_per_second=results.percentiles(speeds),
            samples=len(speeds),
            turns=[variant.characters / median(map(sum, turn)) for turn in self.turns],
            mfu=mfu,
            parts=parts,
            error=self.error,
            threads=self.facts.get("threads"),
            peak_memory_bytes=self.facts.get("peak_memory_bytes"),
            **{key: self.facts[key] for key in FACTS if key in self.facts},
            **more,
        )


FACTS = ("parameters", "loss_before", "loss_after", "first_step_seconds", "peak_reserved_bytes", "flops_per_second")


def contest(
    contestants: list[Contestant], tail: list[str], rounds: int, seconds: float, done: Callable[[str], None]
) -> None:
    """Start each in a process, see that it learns, then let them train in turn for ``seconds``, ``rounds`` times.

    What is found is kept in the contestants as it comes, so that an interrupted contest has its results so far.

    Args:
        tail: the worker's arguments behind the variant.
    """
    with ExitStack() as running:
        conversations = []
        for contestant in contestants:
            command = [sys.executable, "-m", "bench.engines.training", contestant.variant.to_json(), *tail]
            conversations.append(running.enter_context(Conversation(command)))
            contestant.facts |= _ask(contestant, conversations[-1], "check")
            done(f"check of {contestant.variant.label}")
        for turn in range(rounds):
            for contestant, conversation in zip(contestants, conversations, strict=True):
                answer = _ask(contestant, conversation, f"steps {seconds}")
                if "steps" in answer:
                    contestant.turns.append(answer.pop("steps"))
                    if "flops_per_second" in answer:
                        best = contestant.facts.get("flops_per_second", 0.0)
                        answer["flops_per_second"] = max(answer["flops_per_second"], best)
                    contestant.facts |= answer
                if contestant.variant.engine != "products" and contestant.variant.freeze == "none":
                    evaluation = _ask(contestant, conversation, "evaluate")
                    contestant.evaluations += [evaluation["seconds"]] if evaluation else []
                done(f"turn {turn + 1} of {contestant.variant.label}")


def _ask(contestant: Contestant, conversation: Conversation, request: str) -> dict[str, Any]:
    """The answer; an empty one, and the error kept, from a contestant that has failed."""
    if contestant.error is not None:
        return {}
    try:
        answer = conversation.ask(request)
    except StoppedError as stopped:
        contestant.error = "OOM" if stopped.returncode == KILLED else str(stopped)
        return {}
    if "error" in answer:
        contestant.error = answer["error"]
        return {}
    return answer

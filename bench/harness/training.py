"""Variants of training as entries that take turns, and the rows of their results."""

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.engines.variant import Variant
from bench.harness import flops, results
from bench.harness.interleave import Entry, Worker

PHASES = ("data", "forward", "backward", "optimizer")
FACTS = ("parameters", "loss_before", "loss_after", "first_step_seconds", "peak_reserved_bytes", "flops_per_second")


@dataclass
class TrainingEntry(Entry):
    """A variant that trains for some seconds in each turn, and its results so far.

    Attributes:
        options: the options of the handler in ``bench.engines.training``, besides the variant.
        seconds: the length of a turn.
        facts: what the worker reported, such as its parameters and its peak memory.
        turns: seconds by turn, step and part.
        evaluations: seconds to evaluate one batch, by turn.
    """

    variant: Variant
    options: dict[str, Any]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    turns: list[list[list[float]]] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return results.label(asdict(self.variant))

    @property
    def steps(self) -> list[list[float]]:
        """Return the seconds of all turns, by step and part."""
        return [step for turn in self.turns for step in turn]

    @property
    def step_seconds(self) -> float | None:
        """Return the median seconds of a step, or None for a variant that was never timed."""
        return median(map(sum, self.steps)) if self.turns else None

    @property
    def noise(self) -> float:
        """Return the ratio of the slowest turn's median time to the fastest one's."""
        medians = [median(map(sum, turn)) for turn in self.turns]
        return max(medians) / min(medians) if medians else 1.0

    def start(self) -> Worker:
        return Worker("bench.engines.training", {"variant": asdict(self.variant)} | self.options)

    def begin(self, worker: Worker) -> None:
        """Check that the variant learns."""
        self.facts |= worker.ask("check")

    def turn(self, worker: Worker) -> None:
        """Train for some seconds, and evaluate once."""
        answer = worker.ask(f"steps {self.seconds}")
        self.turns.append(answer.pop("steps"))
        if "flops_per_second" in answer:
            answer["flops_per_second"] = max(answer["flops_per_second"], self.facts.get("flops_per_second", 0.0))
        self.facts |= answer
        if self.variant.engine != "matmuls" and self.variant.freeze == "none":
            self.evaluations.append(worker.ask("evaluate")["seconds"])

    def row(self, part: str, peaks: dict[str, float], **more: Any) -> dict[str, Any]:
        """Return a row of the result; ``peaks`` are the FLOP/s of matrix products by dtype."""
        variant, step = self.variant, self.step_seconds
        speeds = [variant.characters / sum(parts) for parts in self.steps]
        mfu = parts = None
        if step and variant.engine != "matmuls":
            if variant.precision in peaks:
                work = flops.per_character(variant.model, variant.freeze) * variant.characters
                mfu = work / step / peaks[variant.precision]
            parts = {name: median(column) for name, column in zip(PHASES, zip(*self.steps, strict=True), strict=True)}
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

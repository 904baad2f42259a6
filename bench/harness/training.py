"""Variants of training as entries that take turns, and the rows of their results."""

from collections import ChainMap
from dataclasses import asdict
from statistics import median
from typing import Any

from bench.engines.variant import Variant
from bench.harness import flops, results
from bench.harness.interleave import Entry

PHASES = ("data", "forward", "backward", "optimizer")
FACTS = ("parameters", "loss_before", "loss_after", "first_step_seconds")


class TrainingEntry(Entry):
    """A variant that trains for some seconds in each turn.

    Args:
        options: the options of the handler in ``bench.engines.training``, besides the variant.
        seconds: the length of a turn.
    """

    def __init__(self, variant: Variant, options: dict[str, Any], seconds: float) -> None:
        given = asdict(variant)
        super().__init__("bench.engines.training", {"variant": given} | options)
        self.variant, self.label = variant, results.label(given)
        self.first, self.request = "check", f"steps {seconds}"

    @property
    def steps(self) -> list[list[float]]:
        """Return the seconds of all turns, by step and part."""
        return [step for turn in self.turns for step in turn["steps"]]

    @property
    def flops_per_second(self) -> float:
        """Return the highest speed of matrix products by themselves, or 0 for an engine that trains."""
        return max((answer.get("flops_per_second", 0.0) for answer in self.answers), default=0.0)

    def row(self, part: str, peaks: dict[str, float], **more: Any) -> dict[str, Any]:
        """Return a row of the result, whose MFU is relative to ``peaks``, the FLOP/s of matrix products by dtype."""
        variant, facts = self.variant, ChainMap(*reversed(self.answers))
        speeds = [variant.characters / sum(parts) for parts in self.steps]
        mfu = parts = None
        if self.turns and variant.engine != "matmuls":
            if variant.precision in peaks:
                work = flops.per_character(variant.model, variant.freeze) * variant.characters
                mfu = work / median(map(sum, self.steps)) / peaks[variant.precision]
            parts = {name: median(column) for name, column in zip(PHASES, zip(*self.steps, strict=True), strict=True)}
            evaluations = [turn["evaluation"] for turn in self.turns if "evaluation" in turn]
            parts["evaluation"] = median(evaluations) if evaluations else None
        return results.row(
            part=part,
            chars_per_second=results.percentiles(speeds) if speeds else None,
            samples=len(speeds),
            turns=[variant.characters / median(map(sum, turn["steps"])) for turn in self.turns],
            mfu=mfu,
            flops_per_second=self.flops_per_second or None,
            parts=parts,
            error=self.error,
            threads=facts.get("threads"),
            peak_memory_bytes=facts.get("peak_memory_bytes"),
            **variant.about,
            **{key: facts[key] for key in FACTS if key in facts},
            **more,
        )

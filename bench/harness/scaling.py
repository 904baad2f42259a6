"""Fit how the cost of a character grows with context, batch and width, as the exponent of a power."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bench.engines.variant import Variant
from charformer.presets import PRESETS

CHARACTERS = 4096  # of every step on the axis of the context
HEAD_WIDTH = 64
AXES = {"context": (128, 384, 1024), "batch": (1, 4, 16, 64), "width": (128, 256, 384, 512)}

Row = dict[str, Any]


class Point(NamedTuple):
    """One value of one axis for one engine; all else is as in `baseline-as-coded`, but with a batch of 16."""

    engine: str
    axis: str
    value: int

    def variant(self, vocab_size: int, precision: str) -> Variant:
        """Return what is timed at this point."""
        preset = "baseline-as-coded"
        shape, batch = replace(PRESETS[preset].model, vocab_size=vocab_size), 16
        if self.axis == "context":
            shape, batch = replace(shape, block_size=self.value), CHARACTERS // self.value
        elif self.axis == "batch":
            batch = self.value
        else:
            shape = replace(shape, n_embd=self.value, n_head=self.value // HEAD_WIDTH)
        return Variant(self.engine, preset, shape, batch, precision)


POINTS = [
    Point(engine, axis, value)
    for axis, values in AXES.items()
    for value in values
    for engine in ("charformer", "baseline")
]


def fits(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the exponent of the seconds a character for each engine and axis that has at least two points."""
    found = []
    for axis in AXES:
        for engine in ("charformer", "baseline"):
            mine = [
                (row["value"], 1 / row["chars_per_second"]["p50"])
                for row in rows
                if (row["part"], row["engine"], row.get("axis")) == ("scaling", engine, axis)
                and row["chars_per_second"]
            ]
            if len(mine) > 1:
                values, costs = np.log(np.array(mine)).T
                slope = np.polyfit(values, costs, 1)[0]
                found.append({"engine": engine, "axis": axis, "exponent": float(slope)})
    return found

"""Fit how the cost of a character grows with context, batch and width, as the exponent of a power."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from bench.engines.variant import Variant
from charformer.presets import PRESETS

CHARACTERS = 4096  # of every step on the axis of the context
HEAD_WIDTH = 64
BATCH = 16  # on the other axes


def points(vocab_size: int, precision: str) -> list[tuple[str, int, Variant]]:
    """Return the axis, the value on it and what is timed there; all else is as in `baseline-as-coded`.

    ``precision`` is that of our engine; the baseline's is float32.
    """
    preset = "baseline-as-coded"
    shape = replace(PRESETS[preset].model, vocab_size=vocab_size)
    found = [("context", value, replace(shape, block_size=value), CHARACTERS // value) for value in (128, 384, 1024)]
    found += [("batch", value, shape, value) for value in (1, 4, 16, 64)]
    widths = (128, 256, 384, 512)
    found += [("width", value, replace(shape, n_embd=value, n_head=value // HEAD_WIDTH), BATCH) for value in widths]
    return [
        (axis, value, Variant(engine, preset, model, batch, dtype))
        for axis, value, model, batch in found
        for engine, dtype in (("charformer", precision), ("baseline", "float32"))
    ]


def fits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the exponent of the seconds a character for each axis and engine that has at least two points."""
    found = []
    timed = [row for row in rows if row["part"] == "scaling" and row["chars_per_second"]]
    for axis, engine in product(("context", "batch", "width"), ("charformer", "baseline")):
        mine = [row for row in timed if (row["axis"], row["engine"]) == (axis, engine)]
        if len(mine) > 1:
            costs = [1 / row["chars_per_second"]["p50"] for row in mine]
            slope = np.polyfit(np.log([row["value"] for row in mine]), np.log(costs), 1)[0]
            found.append({"engine": engine, "axis": axis, "exponent": float(slope)})
    return found

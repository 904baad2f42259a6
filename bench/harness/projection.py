"""Project how long the baseline's whole job would take here: two stages of 5,000 steps and their evaluations."""

from typing import Any

from bench.engines import baseline
from charformer.presets import PRESETS

SHAPES = ("baseline", "baseline-as-coded")  # the shape on its page, and the shape in its code
STAGES = 2


def project(rows: list[dict[str, Any]], preset: str) -> dict[str, Any] | None:
    """Return the minutes of the whole job with the baseline's engine and with ours, at one of the baseline's shapes.

    They are computed from the medians of a step and an evaluation. Each evaluation of the baseline takes 400 batches;
    ours, at the same steps, the preset's ``eval_batches`` of each split. Our row is the one in the dtype that
    charformer-train would choose, which comes first. Return None for other presets or if rows are missing.
    """
    if preset not in SHAPES:
        return None
    found: dict[str, Any] = {"preset": preset}
    batches = {"baseline": baseline.EVALUATION_BATCHES, "charformer": 2 * PRESETS[preset].pretrain.eval_batches}
    for engine, count in batches.items():
        wanted = {"part": "interleaved", "preset": preset, "engine": engine, "freeze": "none"}
        row = next((row for row in rows if wanted.items() <= row.items()), None)
        if row is None or not row["parts"] or row["parts"]["evaluation"] is None:
            return None
        steps = baseline.STEPS * row["batch"] * row["context"] / row["chars_per_second"]["p50"]
        evaluations = baseline.EVALUATIONS * count * row["parts"]["evaluation"]
        found[f"{engine}_minutes"] = STAGES * (steps + evaluations) / 60
    return found

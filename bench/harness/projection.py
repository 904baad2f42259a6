"""Project how long the baseline's whole job would take: two stages of 5,000 steps and their evaluations.

Minutes on this machine are projected from the step and the evaluation that were timed on it. Minutes on another card
are predicted by ``kernels.checks.roofline``, and are a floor: they count only matrix products and memory traffic.
"""

from typing import Any

from bench.engines import baseline
from charformer.presets import PRESETS
from kernels.checks import roofline
from kernels.checks.cards import CARDS

SHAPES = ("baseline", "baseline-as-coded")  # the shape on its page, and the shape in its code
STAGES = 2
PUBLISHED_MINUTES = 30  # of both stages on an RTX 3050, by the baseline's page, which does not say for which shape
CARD = "rtx-3050"

Row = dict[str, Any]


def minutes(row: Row) -> float | None:
    """Return the minutes of the whole job with a row's engine, from the medians of its steps and evaluations.

    Each evaluation of the baseline takes 400 batches; ours, at the same steps, the preset's ``eval_batches`` of each
    split. Return None for a row without evaluations.
    """
    if not row["parts"] or row["parts"]["evaluation"] is None:
        return None
    step = row["batch"] * row["context"] / row["chars_per_second"]["p50"]
    return _job_minutes(row["engine"], row["preset"], step, row["parts"]["evaluation"])


def predicted_minutes(preset: str) -> float:
    """Return a lower bound on the minutes of our whole job on the card, with fused kernels in bf16."""
    shape = roofline.Shape(batch=PRESETS[preset].pretrain.batch_size, time=PRESETS[preset].model.block_size)
    rows = roofline.predict(CARDS[CARD], shape)
    step, _ = roofline.step_seconds(rows)
    evaluation, _ = roofline.step_seconds([row for row in rows if row.direction == roofline.FORWARD])
    return _job_minutes("charformer", preset, step, evaluation)


def project(rows: list[Row], preset: str) -> dict[str, Any] | None:
    """Return the projection for one of the baseline's shapes, or None for other presets or if rows are missing.

    Our row is the one in the dtype that charformer-train would choose, which comes first.
    """
    if preset not in SHAPES:
        return None
    mine = [row for row in rows if (row["part"], row["preset"], row["freeze"]) == ("interleaved", preset, "none")]
    found = {}
    for engine in ("baseline", "charformer"):
        found[engine] = next((minutes(row) for row in mine if row["engine"] == engine), None)
    if None in found.values():
        return None
    return {
        "preset": preset,
        "baseline_minutes": found["baseline"],
        "charformer_minutes": found["charformer"],
        "rtx3050_published_minutes": PUBLISHED_MINUTES,
        "rtx3050_predicted_minutes": predicted_minutes(preset),
    }


def _job_minutes(engine: str, preset: str, step_seconds: float, evaluation_seconds: float) -> float:
    batches = baseline.EVALUATION_BATCHES if engine == "baseline" else 2 * PRESETS[preset].pretrain.eval_batches
    evaluations = baseline.EVALUATIONS * batches * evaluation_seconds
    return STAGES * (baseline.STEPS * step_seconds + evaluations) / 60

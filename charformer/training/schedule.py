"""The learning rate of each step, and the last step: the planned one, or an earlier one where patience has run out."""

import math
from collections.abc import Sequence
from itertools import pairwise

from charformer.config import TrainConfig
from charformer.runs.metrics import Counters


def last_step(config: TrainConfig, counters: Counters) -> int:
    """Return the step at which the training ends."""
    return counters.end_step or config.max_steps


def plan_again(counters: Counters) -> None:
    """Let the training end as its config says, whatever shortened it; only later evaluations count for patience."""
    counters.decay_step = counters.end_step = 0
    counters.patient_from = counters.step


def learning_rate(config: TrainConfig, counters: Counters) -> float:
    """Return the rate of the next step: a linear warm-up, the peak, then a linear decay to 0 at the last step."""
    rise = (counters.step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    end, decay_steps = config.max_steps, config.decay_fraction * config.max_steps
    if counters.decay_step:
        end, decay_steps = counters.end_step, counters.end_step - counters.decay_step
    fall = (end - counters.step) / decay_steps if decay_steps else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def run_out_of_patience(
    config: TrainConfig, counters: Counters, evaluations: Sequence[tuple[int, float]]
) -> str | None:
    """Shorten the training if ``patience`` evaluations brought nothing; return a sentence about it, or None.

    While the rate is at its peak, ``patience`` evaluations in a row without a new best loss begin its decay, which
    takes ``decay_fraction`` of the steps so far: stopping at once would give away what the decay brings. While it
    decays, ``patience`` evaluations in a row that each rose above the one before end the training.

    Args:
        counters: the counters at an evaluation, which are changed where the training is shortened.
        evaluations: the step and the validation loss of every evaluation so far.
    """
    step, patience = counters.step, config.patience
    if not patience or step >= last_step(config, counters):
        return None
    decay_step = counters.decay_step or math.ceil((1 - config.decay_fraction) * config.max_steps)
    if step < decay_step:
        if sum(at > max(counters.best_step, counters.patient_from) for at, _ in evaluations) < patience:
            return None
        end = min(config.max_steps, step + math.ceil(config.decay_fraction * step))
        counters.decay_step, counters.end_step = step, end
        falls = f"the learning rate falls from step {step:,} on, and " if end > step else ""
        count = "1 evaluation" if patience == 1 else f"{patience} evaluations"
        return f"validation has not improved in {count}: {falls}the training ends at step {end:,}"
    since = max(decay_step, counters.patient_from)
    recent = [loss for at, loss in evaluations if at >= since][-patience - 1 :]
    if len(recent) <= patience or not all(before < after for before, after in pairwise(recent)):
        return None
    counters.end_step = step
    return f"the validation loss rose in {patience} evaluations in a row: the training ends at step {step:,}"

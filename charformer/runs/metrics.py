"""The counters of a training, and its reports after each step."""

from dataclasses import dataclass
from typing import SupportsFloat


@dataclass
class Counters:
    """The progress of a training, in counters.

    Attributes:
        decay_step: the step at which the decay of the learning rate began early; 0 if it did not.
        end_step: the step at which a shortened training ends; 0 for one that ends as planned.
        patient_from: the step after which evaluations count for patience: 0, or where a resumed run was planned again.
    """

    step: int = 0
    characters: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    best_val_loss: float = float("inf")
    best_step: int = 0
    decay_step: int = 0
    end_step: int = 0
    patient_from: int = 0


@dataclass(frozen=True)
class Evaluation:
    """A line of metrics.jsonl. Losses are means over a fixed subset of each split, in nats per character.

    ``seconds`` counts training alone; ``chars_per_second`` is the rate since the last evaluation.
    """

    step: int
    characters: int
    seconds: float
    train_loss: float
    val_loss: float
    learning_rate: float
    chars_per_second: float | None


@dataclass(frozen=True)
class Progress:
    """A report after a step; ``loss`` is the batch's and may be on a GPU, where reading it waits for the step.

    ``last_step`` is the step at which the training ends, as far as is known by now.
    """

    step: int
    last_step: int
    loss: SupportsFloat
    learning_rate: float
    evaluation: Evaluation | None

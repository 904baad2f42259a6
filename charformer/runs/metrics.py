"""The counters of a training, and its reports after each step."""

from dataclasses import dataclass
from typing import SupportsFloat


@dataclass
class Counters:
    """The progress of a training, in counters."""

    step: int = 0
    characters: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    best_val_loss: float = float("inf")
    best_step: int = 0


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
    """A report after a step; ``loss`` is the batch's and may be on a GPU, where reading it waits for the step."""

    step: int
    loss: SupportsFloat
    learning_rate: float
    evaluation: Evaluation | None

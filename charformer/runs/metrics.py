"""How far a training has come, and what it reports after each step."""

from dataclasses import dataclass
from typing import SupportsFloat


@dataclass
class Counters:
    """How far a training has come."""

    step: int = 0
    characters: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    best_val_loss: float = float("inf")
    best_step: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One line of metrics.jsonl. Losses are means over a fixed subset of each split, in nats a character.

    ``seconds`` counts training alone; ``chars_per_second`` is that of the steps since the last evaluation.
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
    """What is known after a step; ``loss`` is its batch's and may live on a GPU, where reading it waits."""

    step: int
    loss: SupportsFloat
    learning_rate: float
    evaluation: Evaluation | None

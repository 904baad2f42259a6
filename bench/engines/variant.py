"""What is asked of an engine, and what it must be able to do."""

import json
from dataclasses import asdict, dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from charformer.config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """An engine, the model and the batch that it trains, and how."""

    engine: str
    preset: str
    model: ModelConfig
    batch_size: int
    precision: str = "float32"  # of matrix products
    freeze: str = "none"
    compiled: bool = False
    differs: tuple[str, ...] = ()  # from the baseline, in its work

    @property
    def characters(self) -> int:
        """In a step."""
        return self.batch_size * self.model.block_size

    @property
    def label(self) -> str:
        """What a table calls it."""
        words = [self.engine, {"float32": "fp32", "bfloat16": "bf16"}[self.precision]]
        words += ["compiled"] if self.compiled else []
        words += [f"--freeze {self.freeze}"] if self.freeze != "none" else []
        return " ".join(words)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The variant that ``to_json`` wrote."""
        values = json.loads(text)
        model, differs = ModelConfig.from_dict(values["model"]), tuple(values["differs"])
        return cls(**values | {"model": model, "differs": differs})


class Engine(Protocol):
    """One model in training; a worker calls the parts of a step one by one, to time them."""

    @property
    def model(self) -> nn.Module: ...

    def batch(self) -> tuple[Tensor, ...]:
        """The next batch, on the engine's device; every tensor is (B, about T)."""

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss of ``batch``."""

    def update(self) -> None:
        """The optimizer's step, the clearing of gradients included."""

    def evaluate(self) -> None:
        """The loss of one batch, in the way of the engine's own evaluation."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products are of ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

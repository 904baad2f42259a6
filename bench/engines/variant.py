"""The variants of a training bench."""

from dataclasses import dataclass
from typing import Any, Self

import torch

from charformer.config import ModelConfig


@dataclass(frozen=True)
class Variant:
    """An engine with the model, the batch and the settings that it trains with."""

    engine: str
    preset: str
    model: ModelConfig
    batch_size: int
    precision: str = "float32"  # of matrix products
    freeze: str = "none"
    compiled: bool = False
    differs: tuple[str, ...] = ()  # the ways in which its work differs from the baseline's

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of matrix products."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.precision]

    @property
    def characters(self) -> int:
        """Return the number of characters in a step."""
        return self.batch_size * self.model.block_size

    @property
    def about(self) -> dict[str, Any]:
        """Return the entries of a result's row that describe the variant."""
        names = ("engine", "preset", "precision", "freeze", "compiled", "differs")
        shape = {"batch": self.batch_size, "context": self.model.block_size, "width": self.model.n_embd}
        return {name: getattr(self, name) for name in names} | shape | {"dropout": self.model.dropout}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the variant that dataclasses.asdict turned into ``values``, which may have passed through JSON."""
        model, differs = ModelConfig.from_dict(values["model"]), tuple(values["differs"])
        return cls(**values | {"model": model, "differs": differs})

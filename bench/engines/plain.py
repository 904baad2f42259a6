"""A plain training loop around any model, as the baseline writes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.engines import baseline
from bench.engines.variant import Variant
from charformer.data.corpus import Corpus


@dataclass
class PlainEngine:
    """A model and an optimizer in training, with the baseline's batches and evaluation.

    Attributes:
        loss_of: returns the mean loss of (x, y), both (B, T).
        grad_clip: the largest norm of the gradient, or None for no limit.
    """

    variant: Variant
    corpus: Corpus
    device: torch.device
    model: nn.Module
    loss_of: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        self._ids = torch.from_numpy(self.corpus.train.astype("int64"))

    def batch(self) -> tuple[Tensor, ...]:
        """Return the next batch on the device, (x, y)."""
        return baseline.batch(self._ids, self.variant.batch_size, self.variant.model.block_size, self.device)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss_of(*batch)

    def update(self) -> None:
        """Clip the gradients, take the optimizer's step, and clear the gradients."""
        if self.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self) -> None:
        """Compute the loss of one batch without dropout."""
        self.model.eval()
        self.loss(self.batch()).item()
        self.model.train()

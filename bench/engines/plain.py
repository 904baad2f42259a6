"""A plain training loop around any model, as the baseline writes it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.engines import baseline
from bench.engines.variant import Variant
from charformer.data.corpus import Corpus


class PlainEngine:
    """A model and an optimizer in training, with the baseline's batches and evaluation.

    Args:
        loss: returns the mean loss of (x, y), both (B, T).
        grad_clip: the largest norm of the gradient, or None for no limit.
    """

    def __init__(
        self,
        variant: Variant,
        corpus: Corpus,
        device: torch.device,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        grad_clip: float | None = None,
    ) -> None:
        self.model = model
        self._variant = variant
        self._device = device
        self._loss = loss
        self._optimizer = optimizer
        self._grad_clip = grad_clip
        self._ids = torch.from_numpy(corpus.train.astype("int64"))

    def batch(self) -> tuple[Tensor, ...]:
        return baseline.batch(self._ids, self._variant.batch_size, self._variant.model.block_size, self._device)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._loss(*batch)

    def update(self) -> None:
        if self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def evaluate(self) -> None:
        self.model.eval()
        self.loss(self.batch()).item()
        self.model.train()

"""The start of a fine-tune of a model with an n-gram prior: how much of its correction fits the new text.

The network has learned to correct the prior of another text. The prior of the new text is right at once, but the
correction is partly wrong there, and a smaller one predicts better, even before anything is trained.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from charformer.model.gpt import GPT

FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)

log = logging.getLogger("charformer")


@torch.no_grad()
def fit_correction(model: GPT, loss: Callable[[], float]) -> float:
    """Scale what ``model`` adds to its n-gram prior by the factor of ``FACTORS`` that has the least loss; return it.

    The correction is the head's logits and the exponent of the gate. With a factor of 0 the model is its prior.

    Args:
        loss: returns the model's loss on the training part of the new text, the same number in every process.
    """
    weights = _weights_of_correction(model)
    learned = [weight.clone() for weight in weights]
    losses = {}
    for factor in FACTORS:
        _set_scaled(weights, learned, factor)
        losses[factor] = loss()
    best = min(FACTORS, key=lambda factor: losses[factor])
    _set_scaled(weights, learned, best)
    if best != 1:
        log.info("the correction of the n-gram prior was learned on another text; the run starts with %g of it", best)
    return best


def _weights_of_correction(model: GPT) -> list[Tensor]:
    assert model.ngram_prior is not None, "without a prior there is nothing to correct"
    gate = model.ngram_prior.gate
    return [model.head.weight, model.head.bias, gate.weight, gate.bias]


def _set_scaled(weights: list[Tensor], learned: list[Tensor], factor: float) -> None:
    for weight, value in zip(weights, learned, strict=True):
        weight.copy_(factor * value)

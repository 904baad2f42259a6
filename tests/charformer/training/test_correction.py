"""Test how a fine-tune fits the correction of its source's n-gram prior to the new text."""

import numpy as np
import pytest
import torch

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from charformer.training.correction import FACTORS, fit_correction

CONFIG = ModelConfig(1, 2, 16, 8, 0.0, 0.0, vocab_size=9, ngram_order=2)


def model_and_inputs() -> tuple[GPT, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    torch.nn.init.normal_(model.ngram_prior.gate.weight, std=0.3)
    torch.nn.init.normal_(model.ngram_prior.gate.bias)
    return model, torch.randint(9, (4, 8)), torch.softmax(torch.randn(4, 8, 9), dim=-1)


@pytest.mark.parametrize("best", FACTORS)
def test_the_factor_with_the_least_loss_is_kept(best: float) -> None:
    model, ids, prior = model_and_inputs()
    with torch.no_grad():
        correction = model.logits(model.trunk(ids, None, prior)[0], torch.ones_like(prior))
    seen: list[float] = []

    def loss() -> float:
        found = model.logits(model.trunk(ids, None, prior)[0], torch.ones_like(prior))
        factor = float(found[0, 0, 0] / correction[0, 0, 0])
        seen.append(factor)
        return abs(factor - best)

    assert fit_correction(model, loss) == best
    np.testing.assert_allclose(seen, FACTORS, atol=1e-5)
    with torch.no_grad():
        found = model.logits(model.trunk(ids, None, prior)[0], prior)
    if best == 0:
        torch.testing.assert_close(found, prior.log())
    assert (best == 1) == torch.equal(found, model_logits(ids, prior))


def model_logits(ids: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model_and_inputs()[0](ids, None, prior)

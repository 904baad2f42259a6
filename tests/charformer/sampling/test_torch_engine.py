"""Compare the engine with the model itself, which reads the whole text again at every step."""

import numpy as np
import pytest
import torch

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from charformer.sampling.sampler import SamplingConfig, generate
from charformer.sampling.torch_engine import TorchEngine

CPU = torch.device("cpu")


def build(block_size: int) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=block_size, vocab_size=11)).eval()


@torch.no_grad()
def without_cache(model: GPT, context: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(context))[:, -1].numpy()


@pytest.mark.parametrize("block_size", [1, 2, 7, 16])
@pytest.mark.parametrize("prompt", [1, 5, 16, 40])
def test_logits_with_the_cache_are_those_without(block_size: int, prompt: int) -> None:
    model = build(block_size)
    engine = TorchEngine(model, CPU)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 11, (3, prompt))
    context = ids[:, -block_size:]
    np.testing.assert_allclose(engine.start(ids), without_cache(model, context), atol=1e-4)
    for _ in range(3 * block_size + 2):
        new = generator.integers(0, 11, (3, 1))
        if context.shape[1] == block_size:  # the older half is dropped
            context = context[:, (block_size + 1) // 2 :]
        context = np.concatenate([context, new], axis=1)
        np.testing.assert_allclose(engine.extend(new)[:, 0], without_cache(model, context), atol=1e-4)


def test_a_text_starts_over_when_the_engine_is_asked_to() -> None:
    engine = TorchEngine(build(8), CPU)
    config = SamplingConfig(max_new_tokens=20, seed=1)
    first, second = (np.stack(list(generate(engine, np.array([3, 1]), 2, config))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_bfloat16_is_close() -> None:
    ids = np.arange(6)[None]
    exact = TorchEngine(build(8), CPU).start(ids)
    rough = TorchEngine(build(8), CPU, torch.bfloat16).start(ids)
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05

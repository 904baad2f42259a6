"""Our two engines as engines of bench.sampling."""

from itertools import count

import numpy as np

from bench.engines.texts import Handler, answer
from charformer.api import load
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, encode_prompt, generate
from charformer.sampling.speculation import speculate


def handler(
    path: str, characters: int, threads: int, batch: int, temperature: float = 1.0, speculative: bool = False
) -> Handler:
    """Return a handler that samples from the .onnx file at ``path`` or, by PyTorch, from the run there."""
    model = load(path, device="cpu", provider="cpu", threads=threads, speculative=speculative)
    engine, prompt = model.new_engine(), encode_prompt(model.vocab, "")
    seeds = count()

    def sample(greedy: bool) -> list[int]:
        config = SamplingConfig(characters, 0 if greedy else temperature, seed=next(seeds))
        if model.draft is None:
            steps = generate(engine, prompt, batch, config)
        else:
            assert isinstance(engine, OnnxEngine)
            steps = speculate(engine, model.draft, prompt, config)
        return np.stack(list(steps))[:, 0].tolist()

    return answer(sample)

"""The baseline's sampling as an engine of bench.sampling."""

from typing import Any

import torch

from bench.engines.baseline import Baseline
from bench.engines.texts import Handler, answer
from charformer.config import ModelConfig


def handler(model: dict[str, Any], characters: int, threads: int, batch: int) -> Handler:
    """Return a handler that samples from the baseline's model with random weights; ``model`` is its ModelConfig."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    built = Baseline(ModelConfig.from_dict(model)).eval()

    def generate(_greedy: bool) -> list[int]:
        return built.generate(torch.zeros((batch, 1), dtype=torch.int64), characters)[0, 1:].tolist()

    return answer(generate)

"""The baseline as a sampler to measure.

    python -m bench.engines.sample_baseline SHAPE THREADS BATCH CHARACTERS

SHAPE is a JSON file, a ModelConfig.
"""

import json
import sys
from pathlib import Path

import torch

from bench.engines.baseline import Baseline
from bench.harness.worker import serve
from charformer.config import ModelConfig


def main() -> None:
    """Build it, then generate for each line of stdin."""
    shape, threads, batch, characters = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = Baseline(ModelConfig.from_dict(json.loads(Path(shape).read_text("utf-8")))).eval()

    def generate(_greedy: bool) -> list[int]:
        return model.generate(torch.zeros((int(batch), 1), dtype=torch.int64), int(characters))[0, 1:].tolist()

    serve(generate)


if __name__ == "__main__":
    main()

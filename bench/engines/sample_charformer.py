"""Both of our engines as samplers to measure.

    python -m bench.engines.sample_charformer KIND PATH THREADS BATCH CHARACTERS TEMPERATURE HOW

KIND is onnx, and PATH a file, or torch, and PATH a run; HOW is plain or speculative.
"""

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from bench.harness.worker import serve
from charformer.data.vocab import Vocab
from charformer.sampling.engine import Engine
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, encode_prompt, generate
from charformer.sampling.speculation import speculate


def main() -> None:
    """Load, then generate for each line of stdin."""
    kind, path, threads, batch, characters, temperature, how = sys.argv[1:]
    open_engine: Callable[[Path, int], tuple[Engine, Vocab]] = _torch if kind == "torch" else _onnx
    engine, vocab = open_engine(Path(path), int(threads))
    prompt = encode_prompt(vocab, "")
    seeds = count()

    def sample(greedy: bool) -> list[int]:
        config = SamplingConfig(int(characters), 0 if greedy else float(temperature), seed=next(seeds))
        if how == "plain":
            steps = generate(engine, prompt, int(batch), config)
        else:
            assert isinstance(engine, OnnxEngine)
            assert engine.description.draft is not None
            steps = speculate(engine, engine.description.draft, prompt, config)
        return np.stack(list(steps))[:, 0].tolist()

    serve(sample)


def _onnx(path: Path, threads: int) -> tuple[Engine, Vocab]:
    engine = OnnxEngine(path, threads)
    return engine, engine.description.vocab


def _torch(path: Path, threads: int) -> tuple[Engine, Vocab]:
    import torch  # the other engine's memory is not to count it

    from charformer.runs.checkpoint import load_model
    from charformer.runs.folder import RunDir
    from charformer.sampling.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    model, vocab = load_model(RunDir(path))
    return TorchEngine(model, torch.device("cpu")), vocab


if __name__ == "__main__":
    main()

"""Our two engines as engines of bench.sampling."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from bench.engines.texts import Handler, answer
from charformer.data.vocab import Vocab
from charformer.sampling.engine import Engine
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, encode_prompt, generate
from charformer.sampling.speculation import speculate


def handler(
    path: str,
    characters: int,
    threads: int,
    batch: int,
    temperature: float = 1.0,
    speculative: bool = False,
    torch: bool = False,
) -> Handler:
    """Return a handler that samples from the .onnx file at ``path`` or, if ``torch`` is true, from the run there."""
    open_engine: Callable[[Path, int], tuple[Engine, Vocab]] = _torch if torch else _onnx
    engine, vocab = open_engine(Path(path), threads)
    prompt = encode_prompt(vocab, "")
    seeds = count()

    def sample(greedy: bool) -> list[int]:
        config = SamplingConfig(characters, 0 if greedy else temperature, seed=next(seeds))
        if not speculative:
            steps = generate(engine, prompt, batch, config)
        else:
            assert isinstance(engine, OnnxEngine)
            assert engine.description.proposer is not None
            steps = speculate(engine, engine.description.proposer, prompt, config)
        return np.stack(list(steps))[:, 0].tolist()

    return answer(sample)


def _onnx(path: Path, threads: int) -> tuple[Engine, Vocab]:
    engine = OnnxEngine(path, threads)
    return engine, engine.description.vocab


def _torch(path: Path, threads: int) -> tuple[Engine, Vocab]:
    import torch  # imported here, since the ONNX engine's memory must not include it

    from charformer.runs.checkpoint import load_model
    from charformer.runs.folder import RunDir
    from charformer.sampling.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    run = RunDir(path)
    model, vocab = load_model(run)
    return TorchEngine(model, torch.device("cpu"), ngram=run.read_ngram(model.config)), vocab

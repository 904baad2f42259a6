"""Time the sampling of one text and of many, from a model of `baseline`'s size with random weights."""

import time
from dataclasses import replace

import torch

from bench.gpu_stages.visit import TINY, VOCABULARY, Stage, Visit
from bench.harness.results import percentiles
from charformer.config import ModelConfig
from charformer.data.vocab import Vocab
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.sampling.cuda_sampler import CudaSampler
from charformer.sampling.sampler import SamplingConfig, encode_prompt

TEXTS = (1, 64)
ROUNDS = 3


def run(visit: Visit) -> Stage:
    """Yield the characters a second, summed over all texts, in float32 and bfloat16."""
    config = replace(PRESETS["baseline"].model, vocab_size=VOCABULARY)
    if not visit.on_gpu:
        config = ModelConfig.from_dict(config.to_dict() | TINY)
    torch.manual_seed(0)
    vocab = Vocab("".join(map(chr, range(0x20, 0x20 + VOCABULARY))))
    prompt = encode_prompt(vocab, " ")
    characters = config.block_size - 2
    shown = []
    for dtype in (torch.float32, torch.bfloat16):
        sampler = CudaSampler(GPT(config), visit.device, dtype)
        for texts in TEXTS:
            speeds = []
            for seed in range(ROUNDS + 1):
                began = time.perf_counter()
                for _ in sampler.generate(prompt, texts, SamplingConfig(characters, 1.0, seed=seed)):
                    pass
                speeds.append(texts * characters / (time.perf_counter() - began))
            speed = percentiles(speeds[1:])
            yield {
                "part": "sampling",
                "engine": "charformer-torch",
                "preset": "baseline",
                "precision": str(dtype).removeprefix("torch."),
                "batch": texts,
                "context": config.block_size,
                "chars_per_second": speed,
                "samples": ROUNDS,
                "captured": sampler.is_captured,
            }
            shown.append(f"{texts} {str(dtype).removeprefix('torch.')}: {speed['p50']:,.0f}/s")
    return "; ".join(shown)

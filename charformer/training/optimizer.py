"""Parameter groups, the optimizer and its schedule."""

from typing import Any

import torch

from charformer.config import TrainConfig
from charformer.model.gpt import GPT
from charformer.training.muon import Muon


def build_optimizer(model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """AdamW over the weights that train, or Muon over the blocks' matrices and AdamW over the others.

    Weight decay is on matrices alone. A group's rate is its ``ratio`` times that of ``learning_rate``; ``dtype`` is
    that of Muon's matrix products.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = {name for name, p in trainable if config.muon_learning_rate and p.dim() >= 2 and name.startswith("blocks.")}
    rest = [(name, p) for name, p in trainable if name not in muon]
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in rest if p.dim() >= 2], "weight_decay": config.weight_decay, "ratio": 1.0},
        {"params": [p for _, p in rest if p.dim() < 2], "weight_decay": 0.0, "ratio": 1.0},
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, config.beta2), "fused": True}
    if not muon:
        return torch.optim.AdamW(groups, **settings)
    ratio = config.muon_learning_rate / config.learning_rate
    for packed in (True, False):
        chosen = [p for name, p in trainable if name in muon and (".qkv." in name) == packed]
        parts = 3 if packed else 1
        groups.append({"params": chosen, "weight_decay": config.weight_decay, "ratio": ratio, "parts": parts})
    return Muon(groups, dtype, **settings)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of ``step`` (from 0): a linear rise, the peak, then a linear fall that would reach 0 at max_steps."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * config.max_steps
    fall = (config.max_steps - step) / decay_steps if decay_steps else 1.0
    return config.learning_rate * min(1.0, rise, fall)

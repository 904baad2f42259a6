"""Parameter groups, the optimizer and its schedule."""

import torch

from charformer.config import TrainConfig
from charformer.model import GPT


def build_optimizer(model: GPT, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the weights that train, with weight decay on matrices alone."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of ``step`` (from 0): a linear rise, the peak, then a linear fall that would reach 0 at max_steps."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * config.max_steps
    fall = (config.max_steps - step) / decay_steps if decay_steps else 1.0
    return config.learning_rate * min(1.0, rise, fall)

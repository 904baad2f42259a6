"""The baseline's model, training and sampling, written from its description and deliberately naive.

Each head has a linear layer of its own for each of q, k and v; the mask covers all of T x T; scores are scaled by the
width of the model instead of the head's; and there is no cache, so every character reads the whole prefix again. Do not
make anything here faster: the figures compare with it.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charformer.config import ModelConfig

VOCAB_SIZE = 87  # the distinct characters of its two texts
LEARNING_RATE = 3e-4
STEPS = 5000  # of each of its two stages
EVALUATIONS = 11  # in a stage: one every 500 steps, the first before any step
EVALUATION_BATCHES = 2 * 200  # in an evaluation: 200 of the training split and 200 of the validation split
ITS_LOSS = 1.52  # its validation loss after pretraining, as its page shows it
# The losses that the baseline's page shows, (training, validation) by step. Its fine-tunes start from 5,000 steps.
PUBLISHED = {
    ("pretrain", "none"): {500: (2.04, 2.11), 5000: (1.25, 1.52)},
    ("finetune", "none"): {500: (1.09, 1.15), 5000: (0.81, 1.07)},
    ("finetune", "trunk"): {500: (1.51, 1.49), 5000: (1.46, 1.44)},
}


class Head(nn.Module):
    """One head of self-attention."""

    mask: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd // config.n_head
        self.key = nn.Linear(config.n_embd, width, bias=False)
        self.query = nn.Linear(config.n_embd, width, bias=False)
        self.value = nn.Linear(config.n_embd, width, bias=False)
        self.register_buffer("mask", torch.tril(torch.ones(config.block_size, config.block_size)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output (B, T, D) for normed activations (B, T, C)."""
        time, channels = x.shape[1:]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * channels**-0.5
        scores = scores.masked_fill(self.mask[:time, :time] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)


class Block(nn.Module):
    """A block: heads side by side with a projection, then a ReLU MLP, each on a normed residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        wide = config.n_embd
        self.heads = nn.ModuleList(Head(config) for _ in range(config.n_head))
        self.proj = nn.Linear(wide, wide)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(wide, 4 * wide), nn.ReLU(), nn.Linear(4 * wide, wide), nn.Dropout(config.dropout)
        )
        self.ln1 = nn.LayerNorm(wide)
        self.ln2 = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream (B, T, C) after the block, from that before it."""
        normed = self.ln1(x)
        x = x + self.dropout(self.proj(torch.cat([head(normed) for head in self.heads], dim=-1)))
        return x + self.mlp(self.ln2(x))


class Baseline(nn.Module):
    """The baseline's model. As in the original, its final layer norm is defined but not applied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (B, T, V) for ids (B, T)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return cast(Tensor, self.head(self.blocks(self.tokens(ids) + self.positions(places))))

    @torch.no_grad()
    def generate(self, ids: Tensor, characters: int) -> Tensor:
        """Return ids (B, T + characters) that continue ``ids`` (B, T), each by a pass over the last ``block_size``."""
        for _ in range(characters):
            logits = self(ids[:, -self.block_size :])[:, -1]
            ids = torch.cat([ids, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return ids


def batch(ids: Tensor, batch_size: int, block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random windows of a text's ids (N,), and the same windows shifted by one character, both (B, T)."""
    offsets = torch.randint(len(ids) - block_size, (batch_size,))
    x = torch.stack([ids[offset : offset + block_size] for offset in offsets])
    y = torch.stack([ids[offset + 1 : offset + block_size + 1] for offset in offsets])
    return x.to(device), y.to(device)


def loss(model: Baseline, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats a character."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def optimizer(model: Baseline) -> torch.optim.Optimizer:
    """Return Adam with PyTorch's defaults."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

"""The yardstick: the baseline's model and its sampling, written anew from its description, naive on purpose.

One linear a head for each of q, k and v, a mask over all of T x T, scores scaled by the width of the model instead of a
head's, no cache: every character reads the whole prefix again. Nothing here is to be made faster.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charformer.config import ModelConfig


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
        """(B, T, C) -> (B, T, D)."""
        time, channels = x.shape[1:]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * channels**-0.5
        scores = scores.masked_fill(self.mask[:time, :time] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)


class Block(nn.Module):
    """Heads side by side, a projection, and a ReLU MLP, each on a normed residual stream."""

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
        """(B, T, C) -> (B, T, C)."""
        normed = self.ln1(x)
        x = x + self.dropout(self.proj(torch.cat([head(normed) for head in self.heads], dim=-1)))
        return x + self.mlp(self.ln2(x))


class Baseline(nn.Module):
    """The model; its final layer norm is defined and, as in the original, not applied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return cast(Tensor, self.head(self.blocks(self.tokens(ids) + self.positions(places))))

    @torch.no_grad()
    def generate(self, ids: Tensor, characters: int) -> Tensor:
        """(B, T) -> (B, T + characters), one character a pass over the last ``block_size``."""
        for _ in range(characters):
            logits = self(ids[:, -self.block_size :])[:, -1]
            ids = torch.cat([ids, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return ids

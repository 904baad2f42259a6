"""A GPT like nanoGPT's for a GPU, written for this bench: flash attention of PyTorch, GELU, tied head, fused AdamW.

Its settings are those of nanoGPT for a text of characters; the shape and the dropout rate are a preset's. Dropout acts
on the embeddings, on attention's weights and on each branch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engines.train_nanogpt import BETAS, GRAD_CLIP, LEARNING_RATE, WEIGHT_DECAY
from bench.engines.variant import Variant
from charformer.config import ModelConfig
from charformer.data.corpus import Corpus
from charformer.device import autocast, copy_to_device


class Attention(nn.Module):
    """Causal self-attention that computes all heads at once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch's output (B, T, C) for normed activations (B, T, C)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout_p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


class NanogptLike(nn.Module):
    """The nanoGPT-like model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.dropout = config.dropout
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.block_size, width)
        self.norms1 = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(config.n_layer))
        self.attentions = nn.ModuleList(Attention(config) for _ in range(config.n_layer))
        self.norms2 = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(config.n_layer))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 4 * width, bias=False),
                nn.GELU(),
                nn.Linear(4 * width, width, bias=False),
                nn.Dropout(config.dropout),
            )
            for _ in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(width, bias=False)
        self.register_buffer("places", torch.arange(config.block_size), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (B, T, V) for ids (B, T)."""
        x = self.tokens(ids) + self.positions(self.get_buffer("places")[: ids.shape[1]])
        x = F.dropout(x, self.dropout, self.training)
        for norm1, attention, norm2, mlp in zip(self.norms1, self.attentions, self.norms2, self.mlps, strict=True):
            x = x + attention(norm1(x))
            x = x + mlp(norm2(x))
        return F.linear(self.ln_f(x), self.tokens.weight)


class NanogptLikeEngine:
    """The model in training, in steps that a CUDA graph can capture."""

    def __init__(self, variant: Variant, corpus: Corpus, device: torch.device) -> None:
        self.model: nn.Module = NanogptLike(variant.model).to(device).train()
        self._variant, self._device = variant, device
        self._ids = torch.from_numpy(corpus.train.astype("int64"))
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        is_cuda = device.type == "cuda"
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True, capturable=is_cuda)

    def batch(self, out: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Return the next batch's windows on the device, (B, T + 1), written to ``out`` if that is given."""
        length = self._variant.model.block_size + 1
        starts = torch.randint(len(self._ids) - length + 1, (self._variant.batch_size, 1))
        windows = self._ids[starts + torch.arange(length)]
        return (copy_to_device(windows, self._device, out[0] if out else None),)

    def step(self, windows: Tensor) -> Tensor:
        """Train on one batch and return its loss, without waiting for the device."""
        with autocast(self._variant.dtype, self._device):
            logits = self.model(windows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

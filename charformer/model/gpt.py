"""The GPT: a pre-LN decoder with learned or rotary positions and a ReLU MLP, written on ``kernels.ops``.

Shapes: B batch, T time, C channels, H heads, D head width, V vocabulary.
"""

from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from charformer.config import ModelConfig
from charformer.model.ngram_prior import NgramPrior
from charformer.model.rotary import rotary_cache
from kernels import ops
from kernels.reference import rotate


class Cache(Protocol):
    """The interface to the texts read so far: the positions of the next characters, and the keys that they see."""

    def rows(self, table: Tensor, count: int) -> Tensor:
        """Return the next ``count`` positions' rows of a table with one row for each position, (P, ...)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v, (B, H, T, D), to the cache; return the attention of q, (B, H, T, D), in q's shape."""

    def advance(self, count: int) -> None:
        """Advance by ``count`` characters, which have passed through every layer."""


class KVCache:
    """A cache of every layer's keys and values, up to ``cache_size``; attention sees the last ``block_size``."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.n_head, config.cache_size, config.n_embd // config.n_head)
        self.block_size = config.block_size
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def rows(self, table: Tensor, count: int) -> Tensor:
        return table[self.length : self.length + count]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        seen = slice(max(0, end - self.block_size), end)
        return ops.attention(q, self.keys[layer, :, :, seen], self.values[layer, :, :, seen])

    def advance(self, count: int) -> None:
        self.length += count


class Rotary(nn.Module):
    """The rotations of queries and keys that encode positions (charformer/model/rotary.py)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos, sin = rotary_cache(config)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    def forward(self, time: int, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of the next ``time`` positions, (time, D / 2) each."""
        cos, sin = (table[:time] if cache is None else cache.rows(table, time) for table in (self.cos, self.sin))
        return cos, sin

    def slide(self, cache: KVCache) -> None:
        """Move the last ``block_size`` - 1 positions to the front of ``cache``, and rotate their keys back to match."""
        kept = cache.block_size - 1
        first = cache.length - kept
        cos, sin = (table[first : first + 1].to(cache.keys.dtype) for table in (self.cos, self.sin))
        cache.keys[..., :kept, :] = rotate(cache.keys[..., first : cache.length, :], cos, -sin)
        cache.values[..., :kept, :] = cache.values[..., first : cache.length, :].clone()
        cache.length = kept


class Linear(nn.Linear):
    """PyTorch's linear layer, with a bias, computed by ``kernels.ops``."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Causal multi-head self-attention with packed q, k, v."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None, cache: Cache | None) -> Tensor:
        """Return the attention of ``x``, (B, T, C) -> (B, T, C); ``tables`` is the result of ``Rotary``."""
        batch, time, channels = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.n_head, channels // self.n_head)
        if tables is not None:
            q, k, v = ops.rotary(qkv, *tables)
        else:
            q, k, v = (each.transpose(1, 2) for each in qkv.unbind(2))
        if cache is not None:
            y = cache.attend(self.layer, q, k, v)
        else:
            y = ops.attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(batch, time, channels))


class MLP(nn.Module):
    """Two linear layers around a ReLU or its square (So et al. 2021), four times as wide between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, 4 * config.n_embd)
        self.proj = Linear(4 * config.n_embd, config.n_embd)
        self.squared = config.relu_power == 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        h = _SquaredReLU.apply(h) if self.squared else nn.functional.relu(h)  # type: ignore[no-untyped-call]
        return self.proj(h)


class _SquaredReLU(torch.autograd.Function):
    """The square of a ReLU, with two passes over the gradient in the backward pass instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.relu()
        ctx.save_for_backward(root)
        return root * root  # square() returns float32 under autocast on a GPU

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return (d_out * root).mul_(2)


class Block(nn.Module):
    """A block of attention and MLP; each add and its layer norm are one op, so the last norm is the next block's."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config, layer)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        next_ln: nn.LayerNorm,
        tables: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream after this block and its ``next_ln``, from the stream before and its ``ln1``.

        All are (B, T, C).
        """
        dropout_p = self.dropout if self.training else 0.0
        ln2 = self.ln2
        x, h = ops.add_dropout_layer_norm(x, self.attn(h, tables, cache), ln2.weight, ln2.bias, dropout_p)
        return ops.add_dropout_layer_norm(x, self.mlp(h), next_ln.weight, next_ln.bias, dropout_p)


class GPT(nn.Module):
    """A character-level GPT (Radford et al. 2019), with PyTorch's default initialisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.pos_emb = None if config.rope_base else nn.Embedding(config.block_size, config.n_embd)
        self.rotary = Rotary(config) if config.rope_base else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = Linear(config.n_embd, config.vocab_size)
        self.ngram_prior = NgramPrior(config) if config.ngram_order else None

    def forward(self, ids: Tensor, cache: Cache | None = None, prior: Tensor | None = None) -> Tensor:
        """Return the next-character logits at every position.

        Args:
            ids: (B, T) int64, T <= block_size; positions count from the length of the cache, up to cache_size.
            cache: filled by a first call with any T, then extended by calls with T = 1.
            prior: (B, T, V), an n-gram table's probabilities after each position; for a model with an ngram_order.

        Returns:
            (B, T, V).
        """
        return self._logits(self.trunk(ids, cache, prior)[1], prior)

    def trunk(self, ids: Tensor, cache: Cache | None = None, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the residual stream after the last block and its ``ln_f``, (B, T, C) each; see ``forward``."""
        time = ids.shape[1]
        x = self.tok_emb(ids)
        if self.pos_emb is not None:
            positions = self.pos_emb.weight
            x = x + (positions[:time] if cache is None else cache.rows(positions, time))
        if self.ngram_prior is not None:
            assert prior is not None, "a model with an n-gram prior needs its probabilities"
            x = x + self.ngram_prior.embed(prior)
        blocks = cast("list[Block]", list(self.blocks))
        tables = self.rotary(time, cache) if self.rotary is not None else None
        h = ops.layer_norm(x, blocks[0].ln1.weight, blocks[0].ln1.bias)
        for block, next_ln in zip(blocks, [*(block.ln1 for block in blocks[1:]), self.ln_f], strict=True):
            x, h = block(x, h, next_ln, tables, cache)
        if cache is not None:
            cache.advance(time)
        return x, h

    def logits(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """Return the logits, (B, T, V), for the residual stream after the last block, the first result of ``trunk``."""
        return self._logits(ops.layer_norm(x, self.ln_f.weight, self.ln_f.bias), prior)

    def _logits(self, h: Tensor, prior: Tensor | None) -> Tensor:
        logits = self.head(h)
        if self.ngram_prior is None:
            return logits
        assert prior is not None, "a model with an n-gram prior needs its probabilities"
        return self.ngram_prior.correct(logits, h, prior)

    @torch.no_grad()
    def zero_init(self) -> None:
        """Set the head and the last linear layer of every branch to zero.

        Then every branch adds nothing at first, and all characters are equally likely.
        """
        blocks = cast("list[Block]", list(self.blocks))
        for linear in (self.head, *(branch.proj for block in blocks for branch in (block.attn, block.mlp))):
            linear.weight.zero_()
            linear.bias.zero_()

    @torch.no_grad()
    def extend_vocab(self, vocab_size: int, generator: torch.Generator) -> None:
        """Append rows to the embedding and the head until there are ``vocab_size``; old rows keep their values.

        A new row is the mean of the old ones, the best guess for an unseen character. An embedding also gets noise of a
        tenth of their spread, so that new characters differ from the first step on.
        """
        new = vocab_size - self.config.vocab_size
        old = self.tok_emb.weight
        noise = torch.randn(new, old.shape[1], generator=generator).to(old) * (0.1 * old.std())
        self.tok_emb = nn.Embedding(vocab_size, old.shape[1], _weight=torch.cat([old, old.mean(0) + noise]))
        head = Linear(self.config.n_embd, vocab_size, device=old.device, dtype=old.dtype)
        head.weight.copy_(_append_mean(self.head.weight, new))
        head.bias.copy_(_append_mean(self.head.bias, new))
        self.head = head
        if self.ngram_prior is not None:
            self.ngram_prior.extend_vocab(vocab_size, generator)
        self.config = replace(self.config, vocab_size=vocab_size)


def _append_mean(rows: Tensor, new: int) -> Tensor:
    return torch.cat([rows, rows.mean(0, keepdim=True).expand(new, *rows.shape[1:])])

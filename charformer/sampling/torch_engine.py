"""An engine that computes next-character logits from a checkpoint, with a KV cache."""

import numpy as np
import torch

from charformer.data.ngram import NgramTable
from charformer.model.gpt import GPT, KVCache
from charformer.sampling.engine import Ids, Logits
from charformer.sampling.prior import GrowingPrior


class TorchEngine:
    """An ``Engine`` on PyTorch.

    Beyond ``block_size``, rotary positions slide: a character attends to the cached keys and values of the
    ``block_size`` - 1 before it, which were computed when those characters saw earlier ones. Learned positions cannot
    slide: the older half of the context is dropped, and the rest is read again.

    Args:
        ngram: the table of a model with an n-gram prior, else None.
    """

    def __init__(
        self, model: GPT, device: torch.device, dtype: torch.dtype = torch.float32, ngram: NgramTable | None = None
    ) -> None:
        assert (ngram is not None) == (model.config.ngram_order > 0), "a table for a model with a prior, and no other"
        self.model = model.to(device=device, dtype=dtype).eval()
        self.device = device
        self.dtype = dtype
        self._context = np.zeros((0, 0), np.int64)
        self._cache: KVCache | None = None
        self._prior = GrowingPrior(ngram) if ngram is not None else None

    def read(self, ids: Ids, before: Ids | None = None) -> Logits:
        """Begin with ``ids``, (B, T <= block_size); return the logits at every position, (B, T, V).

        ``before``, (B, any T), is the text before ``ids``; only an n-gram prior reads it.
        """
        self._context = ids
        self._cache = KVCache(self.model.config, len(ids), self.device, self.dtype)
        if self._prior is not None:
            self._prior.begin(ids[:, :0] if before is None else before)
        return self._logits(ids, self._cache)

    def start(self, ids: Ids) -> Logits:
        first = max(0, ids.shape[1] - self.model.config.block_size)
        return self.read(ids[:, first:], ids[:, :first])[:, -1]

    def extend(self, ids: Ids) -> Logits:
        assert self._cache is not None, "start comes first"
        assert ids.shape[1] == 1, "one character at a time"
        config, cache = self.model.config, self._cache
        if cache.length == config.cache_size:
            if self.model.rotary is None:
                return self._read_again(ids)
            self.model.rotary.slide(cache)
        if self.model.rotary is None:
            self._context = np.concatenate([self._context, ids], axis=1)
        return self._logits(ids, cache)

    def _read_again(self, ids: Ids) -> Logits:
        """Begin with the later half of the context and ``ids``, (B, 1); an n-gram prior still sees the earlier half."""
        config = self.model.config
        half = config.block_size - config.block_size // 2
        before, kept = self._context[:, :half], self._context[:, half:]
        return self.read(np.concatenate([kept, ids], axis=1), before)[:, -1:]

    @torch.inference_mode()
    def _logits(self, ids: Ids, cache: KVCache) -> Logits:
        prior = None if self._prior is None else torch.from_numpy(self._prior.extend(ids)).to(self.device)
        logits = self.model(torch.from_numpy(ids).to(self.device), cache, prior)
        return logits.float().cpu().numpy()

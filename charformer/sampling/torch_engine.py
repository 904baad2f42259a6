"""Next-character logits from a checkpoint, with a KV cache."""

import numpy as np
import torch

from charformer.model.gpt import GPT, KVCache
from charformer.sampling.engine import Ids, Logits


class TorchEngine:
    """An ``Engine`` on PyTorch.

    Past ``block_size`` rotary positions slide: a character sees the ``block_size`` - 1 before it, as they were computed
    when they could see others. Learned positions cannot: the older half of the context is dropped, and the rest is read
    again.
    """

    def __init__(self, model: GPT, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.model = model.to(device=device, dtype=dtype).eval()
        self.device = device
        self.dtype = dtype
        self._context = np.zeros((0, 0), np.int64)
        self._cache: KVCache | None = None

    def start(self, ids: Ids) -> Logits:
        self._context = ids[:, -self.model.config.block_size :]
        self._cache = KVCache(self.model.config, len(ids), self.device, self.dtype)
        return self._logits(self._context, self._cache)

    def extend(self, ids: Ids) -> Logits:
        assert self._cache is not None, "start comes first"
        assert ids.shape[1] == 1, "one character at a time"
        config, cache = self.model.config, self._cache
        if cache.length == config.cache_size:
            if self.model.rotary is None:
                kept = self._context[:, config.block_size - config.block_size // 2 :]
                return self.start(np.concatenate([kept, ids], axis=1))[:, None]
            self.model.rotary.slide(cache)
        if self.model.rotary is None:
            self._context = np.concatenate([self._context, ids], axis=1)
        return self._logits(ids, cache)[:, None]

    @torch.inference_mode()
    def _logits(self, ids: Ids, cache: KVCache) -> Logits:
        logits = self.model(torch.from_numpy(ids).to(self.device), cache)[:, -1]
        return logits.float().cpu().numpy()

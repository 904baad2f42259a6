"""Sampling that stays on a GPU: characters are picked where the logits are, and feed the next step there.

The host only replays a CUDA graph for each character ("CUDA C++ Programming Guide", "CUDA Graphs"), sends noise a block
of characters ahead, and reads characters back a block at a time. Nothing in a step is a number of the host's: where
the next character stands is in a tensor, and attention sees the whole cache through a mask. On a CPU the same work
runs without a graph, which is how it is tested.

Shapes: B texts, V vocabulary, S positions of a cache.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from charformer.model.gpt import GPT, KVCache
from charformer.sampling.engine import Ids
from charformer.sampling.sampler import GREEDY_BELOW, SamplingConfig, gumbel_noise
from charformer.sampling.tensor_picking import pick

BLOCK = 64  # characters of a text between two looks at them: some milliseconds
NOISE_NUMBERS = 2**22  # of a block, at most: 32 MiB

T = TypeVar("T")

log = logging.getLogger("charformer")


class CudaSampler:
    """Continues prompts as ``sampler.generate`` does with a ``TorchEngine``: in float32 the same seed, the same text.

    The model has no n-gram prior, whose table is the host's. Several threads may sample at once.
    """

    def __init__(self, model: GPT, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        assert not model.config.ngram_order, "its table is looked up on the host: TorchEngine does that"
        self._model = model.to(device=device, dtype=dtype).eval()
        self._device = device
        self._dtype = dtype
        self._idle: list[_Decoder] = []

    @property
    def is_captured(self) -> bool:
        """Whether the last texts were made by a CUDA graph."""
        return any(decoder.is_captured for decoder in self._idle)

    def generate(self, prompt: Ids, samples: int, config: SamplingConfig) -> Iterator[Ids]:
        """Continue ``prompt``, (T,), ``samples`` times; yield the next ids of all, (samples,), a block at a time."""
        if config.max_new_tokens == 0:
            return
        decoder = self._decoder(samples, replace(config, max_new_tokens=0, seed=0))
        decoder.begin(prompt)
        end = config.max_new_tokens
        try:
            with ThreadPoolExecutor(1) as pool:
                noise = _one_behind(
                    pool.submit(decoder.new_noise, config.seed, position, min(decoder.block, end - position))
                    for position in range(0, end, decoder.block)
                )
                # The GPU is at work on the next block while a block is read.
                for read in _one_behind(decoder.make(block.result()) for block in noise):
                    yield from read()
        finally:
            self._idle = [decoder]

    def _decoder(self, samples: int, picking: SamplingConfig) -> "_Decoder":
        """Return one that is not at work: the last one, with its graphs, where it is for these values."""
        with suppress(IndexError):
            idle = self._idle.pop()
            if (idle.samples, idle.picking) == (samples, picking):
                return idle
            del idle  # its memory is free for the next
        return _Decoder(self._model, samples, picking, self._device, self._dtype)


class _Decoder:
    """B texts that grow by a character a step, all of them on the device.

    Args:
        picking: of which the temperature, ``top_k`` and ``top_p`` count.
    """

    def __init__(
        self, model: GPT, samples: int, picking: SamplingConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        config = model.config
        self.samples = samples
        self.picking = picking
        self.block = max(1, min(BLOCK, NOISE_NUMBERS // (samples * config.vocab_size)))
        self._model = model
        self._on_gpu = device.type == "cuda"
        self._is_greedy = picking.temperature < GREEDY_BELOW
        # A division by a number of the host's is a multiplication by its reciprocal on a GPU.
        self._temperature = torch.tensor(picking.temperature, dtype=torch.float64, device=device)
        self._cache = KVCache(config, samples, device, dtype)
        self._ahead = _StepCache(self._cache)
        self._newest = torch.zeros(samples, 1, dtype=torch.int64, device=device)
        self._context = torch.zeros(samples, config.block_size, dtype=torch.int64, device=device)
        noise_shape = (self.block, samples, 0 if self._is_greedy else config.vocab_size)
        self._noise = torch.zeros(noise_shape, dtype=torch.float64, device=device)
        self._made = torch.zeros(self.block, samples, dtype=torch.int64, device=device)
        self._row = torch.zeros(1, dtype=torch.int64, device=device)  # of this block's noise and characters
        self._prompt: Tensor | None = None
        self._step = _Replayed(self._read_newest, self._on_gpu)
        self._slide = _Replayed(self._move_cache, self._on_gpu)
        self._reread = _Replayed(self._read_half, self._on_gpu)

    def begin(self, prompt: Ids) -> None:
        """Begin each text with the end of ``prompt``, (T,)."""
        last = torch.from_numpy(np.tile(prompt[-self._model.config.block_size :], (self.samples, 1)))
        self._prompt = last.to(self._newest.device)

    def new_noise(self, seed: int, position: int, count: int) -> Tensor:
        """Return noise for ``count`` characters from ``position`` on, (count, B, V), in memory that a GPU can read.

        Where the largest logit is picked there is none, (count, B, 0).
        """
        _, samples, vocab_size = self._noise.shape
        noise = torch.empty(count, samples, vocab_size, dtype=torch.float64, pin_memory=self._on_gpu)
        if vocab_size:
            for sample in range(samples):
                noise.numpy()[:, sample] = gumbel_noise(seed, sample, position, count, vocab_size)
        return noise

    @property
    def is_captured(self) -> bool:
        return self._step.is_recorded

    @torch.inference_mode()
    def make(self, noise: Tensor) -> Callable[[], Ids]:
        """Enqueue a step for each row of ``noise``, (count, B, V); return what waits for their ids, (count, B)."""
        count = len(noise)
        self._noise[:count].copy_(noise, non_blocking=True)
        self._row.zero_()
        for _ in range(count):
            self._next()
        made = torch.empty(count, self.samples, dtype=torch.int64, pin_memory=self._on_gpu)
        made.copy_(self._made[:count], non_blocking=True)
        if not self._on_gpu:
            return made.numpy
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def read() -> Ids:
            copied.synchronize()
            return made.numpy().copy()  # pinned memory is scarce

        return read

    def _next(self) -> None:
        """Make one more character of each text. What runs on a GPU does not tell the host, so lengths are set here."""
        config, cache = self._model.config, self._cache
        if self._prompt is not None:
            self._read(self._prompt)
            self._prompt = None
        elif cache.length < config.cache_size:
            length = cache.length + 1
            self._step()
            cache.length = length
        elif self._model.rotary is None:
            self._reread()
            cache.length = config.block_size // 2 + 1
        else:
            self._slide()
            self._step()
            cache.length = config.block_size

    def _read_newest(self) -> None:
        if self._model.rotary is None:
            self._context.index_copy_(1, self._ahead.position, self._newest)
        self._pick(self._model(self._newest, self._ahead)[:, -1])

    def _move_cache(self) -> None:
        assert self._model.rotary is not None
        self._cache.length = self._model.config.cache_size
        self._model.rotary.slide(self._cache)
        self._ahead.stand_at(self._cache.length)

    def _read_half(self) -> None:
        """Begin again with the later half of the context and the newest character."""
        block_size = self._model.config.block_size
        self._read(torch.cat([self._context[:, block_size - block_size // 2 :], self._newest], dim=1))

    def _read(self, ids: Tensor) -> None:
        """Begin with ``ids``, (B, T), and pick what follows them."""
        self._context[:, : ids.shape[1]] = ids
        self._cache.length = 0
        self._pick(self._model(ids, self._cache)[:, -1])
        self._ahead.stand_at(ids.shape[1])

    def _pick(self, logits: Tensor) -> None:
        noise = self._noise.index_select(0, self._row)[0] if not self._is_greedy else None
        ids = pick(logits, noise, self._temperature, self.picking.top_k, self.picking.top_p)
        self._newest.copy_(ids[:, None])
        self._made.index_copy_(0, self._row, ids[None])
        self._row.add_(1)


class _StepCache:
    """A ``Cache`` for one character at a time, on the memory of a KVCache, that counts positions on the device."""

    def __init__(self, cache: KVCache) -> None:
        device = cache.keys.device
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self._cache = cache
        # Row S - p is the mask of position p: -inf but for the ``block_size`` slots up to its own.
        slots = cache.keys.shape[3]
        masks = torch.full((2 * slots,), -math.inf, dtype=cache.keys.dtype, device=device)
        masks[slots - cache.block_size + 1 : slots + 1] = 0
        self._masks = masks.unfold(0, slots, 1)
        self._unseen = torch.zeros(1, slots, dtype=cache.keys.dtype, device=device)

    def stand_at(self, length: int) -> None:
        """Continue after the first ``length`` positions."""
        self.position.fill_(length)
        self._look()

    def rows(self, table: Tensor, count: int) -> Tensor:
        assert count == 1, "one character at a time"
        return table.index_select(0, self.position)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(2, self.position, k)
        values.index_copy_(2, self.position, v)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._unseen[None, None])

    def advance(self, count: int) -> None:
        self.position.add_(count)
        self._look()

    def _look(self) -> None:
        """Mask what the next character does not see: what comes after it, or is ``block_size`` or more before it."""
        torch.index_select(self._masks, 0, len(self._masks) - 1 - self.position, out=self._unseen)


class _Replayed:
    """Work on tensors that stay where they are: on a GPU run once, recorded, and replayed ever after.

    The first call compiles kernels and makes workspaces, which cannot be recorded. Work that fails to be recorded runs
    at each call, and a warning says so.
    """

    def __init__(self, work: Callable[[], None], on_gpu: bool) -> None:
        self._work = work
        self._may_record = on_gpu
        self._has_run = False
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def is_recorded(self) -> bool:
        return self._graph is not None

    def __call__(self) -> None:
        if self._has_run and self._may_record and self._graph is None:
            self._record()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._work()
        self._has_run = True

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may make noise
                self._work()
        except RuntimeError as error:
            self._may_record = False
            log.warning("sampling without a CUDA graph, which takes longer: %s", str(error).partition("\n")[0])
        else:
            self._graph = graph


def _one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each of ``items`` once the next one has been made."""
    ready: list[T] = []
    for item in items:
        yield from ready
        ready = [item]
    yield from ready

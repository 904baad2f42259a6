"""Matrix products alone: those of a model's training step, and the most that this machine reaches in any."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.engines.variant import DTYPES, Variant
from charformer.device import keep_freed_memory

ROWS = 64  # of queries that attention's products are cut into, so that little behind the diagonal is worked on
SQUARE = 2048  # beside the model's own shapes, one that any library is good at


class MatMuls:
    """The matrix products of one step of a model, on random numbers: those with weights, and attention's own, apart."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        keep_freed_memory()  # as our trainer does; fetching pages is no part of a product
        dtype = DTYPES[variant.precision]
        self._device = device
        shapes = variant.model.weight_shapes()
        self._weights = [
            torch.randn(shape, device=device, dtype=dtype)
            for name, shape in shapes.items()
            if len(shape) == 2 and "_emb." not in name
        ]
        widths = {width for weight in self._weights for width in weight.shape}
        self._rows = {width: torch.randn(variant.characters, width, device=device, dtype=dtype) for width in widths}
        self._square = torch.randn(SQUARE, SQUARE, device=device, dtype=dtype)
        config = variant.model
        heads, time = variant.batch_size * config.n_head, config.block_size
        self._layers = config.n_layer
        self._heads = torch.randn(heads, time, config.n_embd // config.n_head, device=device, dtype=dtype)
        self._scores = torch.randn(heads, min(ROWS, time), time, device=device, dtype=dtype)

    def step(self, mark: Callable[[], None]) -> None:
        """Multiply with each weight, forward and for both gradients, then ``mark``."""
        for weight in self._weights:
            wide_out, wide_in = weight.shape
            _forward_and_backward(self._rows[wide_in], weight, self._rows[wide_out])
        mark()

    def attention(self) -> None:
        """Do attention's own of a step: two forward, four backward, some queries at a time with the keys they see."""
        for _ in range(self._layers):
            for end in range(ROWS, self._heads.shape[1] + ROWS, ROWS):
                seen, rows = self._heads[:, :end], self._heads[:, end - ROWS : end]
                scores = self._scores[:, : rows.shape[1], : seen.shape[1]]
                _ = rows @ seen.mT, scores @ seen  # scores, and the output
                _ = rows @ seen.mT, scores.mT @ rows, scores.mT @ rows, scores @ seen  # of weights, v, k and q

    def peak(self) -> float:
        """Return the most FLOP/s of a large square product and of the MLP's, with gradients, each the best of three."""
        weight = max(self._weights, key=Tensor.numel)
        x, d_y = self._rows[weight.shape[1]], self._rows[weight.shape[0]]
        square = self._square
        speeds = [
            2 * SQUARE**3 / self._best(lambda: square @ square),
            6 * len(x) * weight.numel() / self._best(lambda: _forward_and_backward(x, weight, d_y)),
        ]
        return max(speeds)

    def _best(self, work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(4):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _forward_and_backward(x: Tensor, weight: Tensor, d_y: Tensor) -> None:
    _ = x @ weight.T, d_y @ weight, d_y.T @ x

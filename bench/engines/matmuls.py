"""The matrix products of a model's training step without the rest, and the machine's peak in any matrix product."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.engines.variant import Variant
from bench.harness.timing import seconds_of
from charformer.device import keep_freed_memory

ROWS = 64  # queries in each of attention's matmuls, so that little is computed above the diagonal
SQUARE = 2048  # the size of a matrix that any library multiplies well, besides the model's own shapes


class MatMuls:
    """The matrix products of one training step on random numbers: those with weights, and attention's own."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        keep_freed_memory()  # as our trainer does; getting pages from the system is no part of a matmul
        dtype = variant.dtype
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
        """Do the matmuls with each weight, forward and for both gradients, then call ``mark``."""
        for weight in self._weights:
            wide_out, wide_in = weight.shape
            _forward_and_backward(self._rows[wide_in], weight, self._rows[wide_out])
        mark()

    def attention(self) -> None:
        """Do attention's own matmuls of a step, two forward and four backward, ``ROWS`` queries at a time."""
        for _ in range(self._layers):
            for end in range(ROWS, self._heads.shape[1] + ROWS, ROWS):
                seen, rows = self._heads[:, :end], self._heads[:, end - ROWS : end]
                scores = self._scores[:, : rows.shape[1], : seen.shape[1]]
                _ = rows @ seen.mT, scores @ seen  # the scores, and the output
                # the gradients of attention weights, v, k and q
                _ = rows @ seen.mT, scores.mT @ rows, scores.mT @ rows, scores @ seen

    def peak(self) -> float:
        """Return the higher FLOP/s of a large square matmul and of the MLP's with its gradients, each best of three."""
        weight = max(self._weights, key=Tensor.numel)
        x, d_y = self._rows[weight.shape[1]], self._rows[weight.shape[0]]
        square = self._square
        work = {
            2 * SQUARE**3: lambda: square @ square,
            6 * len(x) * weight.numel(): lambda: _forward_and_backward(x, weight, d_y),
        }
        seconds = {flops: [seconds_of(call, self._device) for _ in range(4)] for flops, call in work.items()}
        return max(flops / min(times[1:]) for flops, times in seconds.items())


def _forward_and_backward(x: Tensor, weight: Tensor, d_y: Tensor) -> None:
    _ = x @ weight.T, d_y @ weight, d_y.T @ x

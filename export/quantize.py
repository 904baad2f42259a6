"""Quantizes weights to 8 or 4 bits: integers with a scale for each block of a linear's inputs, symmetric about zero."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quantized:
    """An (N, K) matrix: signed ``values`` (N, blocks, block) and ``scales`` (N, blocks), K padded with zeros."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]

    def columns(self, inputs: int) -> NDArray[np.int8]:
        """Return the values as the (inputs, N) matrix W of x @ W."""
        return self.values.reshape(len(self.values), -1)[:, :inputs].T

    def nibbles(self) -> NDArray[np.uint8]:
        """Return the values plus 8, two a byte, the first low, as MatMulNBits reads them: (N, blocks, block / 2)."""
        shifted = (self.values + 8).astype(np.uint8)
        return (shifted[..., 0::2] | shifted[..., 1::2] << 4).astype(np.uint8)


def quantize(weight: NDArray[np.float32], block: int, most: int) -> Quantized:
    """Round an (N, K) matrix to integers from -most to most, in blocks of ``block`` inputs."""
    outputs, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % block))).reshape(outputs, -1, block)
    scales = np.abs(padded).max(axis=-1) / np.float32(most)
    scales[scales == 0] = 1
    return Quantized(np.rint(padded / scales[..., None]).astype(np.int8), scales)

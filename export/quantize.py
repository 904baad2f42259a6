"""Weights in 8 or 4 bits: blocks along the inputs of a linear, each with a scale of its own, symmetric about zero."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quantized:
    """A (N, K) matrix: ``values`` (N, blocks, block) as unsigned integers around ``zero``, ``scales`` (N, blocks).

    K is padded with zeros to whole blocks.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int

    @property
    def zero(self) -> int:
        """The integer that stands for 0."""
        return 2 ** (self.bits - 1)

    def packed(self) -> NDArray[np.uint8]:
        """(N, blocks, bytes of a block) as onnxruntime's MatMulNBits reads it: of two 4-bit values the first is low."""
        if self.bits == 8:
            return self.values
        return (self.values[..., 0::2] | self.values[..., 1::2] << 4).astype(np.uint8)


def quantize(weight: NDArray[np.float32], bits: int, block: int) -> Quantized:
    """Round a (N, K) matrix to ``bits`` (4 or 8), in blocks of ``block`` inputs."""
    outputs, inputs = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -inputs % block))).reshape(outputs, -1, block)
    most = 2 ** (bits - 1) - 1
    scales = np.abs(padded).max(axis=-1) / np.float32(most)
    scales[scales == 0] = 1
    values = np.rint(padded / scales[..., None]) + (most + 1)
    return Quantized(values.astype(np.uint8), scales, bits)


def dequantize(matrix: Quantized, inputs: int) -> NDArray[np.float32]:
    """The (N, inputs) matrix that the rounded one stands for."""
    values = (matrix.values.astype(np.float32) - matrix.zero) * matrix.scales[..., None]
    return values.reshape(len(values), -1)[:, :inputs]

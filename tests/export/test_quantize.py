"""Compare the rounding of weights with code that rounds one number at a time."""

import numpy as np
import pytest

from export.quantize import quantize


def matrix(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize(("inputs", "block"), [(8, 8), (40, 16), (5, 16), (64, 32)])
@pytest.mark.parametrize("most", [7, 64, 127])
def test_every_value_is_the_nearest_multiple_of_its_block_s_scale(inputs: int, block: int, most: int) -> None:
    weight = matrix(3, inputs)
    rounded = quantize(weight, block, most)
    blocks = -(-inputs // block)
    assert rounded.values.shape == (3, blocks, block)
    assert rounded.scales.shape == (3, blocks)
    for row in range(3):
        for column in range(inputs):
            of_block = weight[row, column // block * block : (column // block + 1) * block]
            scale = np.abs(of_block).max() / most
            assert rounded.scales[row, column // block] == pytest.approx(scale, rel=1e-6)
            value = rounded.values[row, column // block, column % block]
            assert abs(value) <= most
            assert abs(value * scale - weight[row, column]) <= scale / 2 * (1 + 1e-5)
    assert not rounded.values.reshape(3, -1)[:, inputs:].any()


def test_columns_are_the_matrix_that_x_is_multiplied_with() -> None:
    weight = matrix(4, 10)
    rounded = quantize(weight, 10, 127)
    np.testing.assert_allclose(rounded.columns(10) * rounded.scales[:, 0], weight.T, atol=0.02)
    assert quantize(weight, 16, 127).columns(10).shape == (10, 4)


def test_nibbles_are_two_a_byte_the_first_one_low() -> None:
    rounded = quantize(matrix(2, 32), 16, 7)
    packed = rounded.nibbles()
    assert packed.shape == (2, 2, 8)
    for place in np.ndindex(2, 2, 16):
        byte = int(packed[place[0], place[1], place[2] // 2])
        assert (byte >> 4 * (place[2] % 2) & 15) - 8 == rounded.values[place]


def test_a_block_of_zeros_stays_zero() -> None:
    rounded = quantize(np.zeros((2, 4), np.float32), 4, 7)
    assert not rounded.values.any()
    assert np.isfinite(rounded.scales).all()

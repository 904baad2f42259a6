"""The rotary positions (Su et al. 2021): pairs of channels, half a head apart, rotated by an angle per position.

Positions affect an attention score only by the distance between query and key. So a cache may move its keys to other
slots if it rotates each key by as much as it moves.
"""

import numpy as np
from numpy.typing import NDArray

from charformer.config import ModelConfig


def rotary_tables(config: ModelConfig, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cosines and sines, (..., D / 2) each, that rotate the pairs of a head at ``positions``, (...)."""
    pairs = config.n_embd // config.n_head // 2
    angles = positions[..., None] * config.rope_base ** (-np.arange(pairs) / pairs)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotary_cache(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cosines and sines for the slots of a cache, (cache_size, D / 2) each."""
    return rotary_tables(config, np.arange(config.cache_size))


def rotate_back(keys: NDArray[np.floating], config: ModelConfig, slots: int) -> NDArray[np.floating]:
    """Return keys, (..., T, D), rotated to ``slots`` slots earlier; zeros may pad D at the end of each half."""
    missing = keys.shape[-1] // 2 - config.n_embd // config.n_head // 2
    cos, sin = (np.pad(table, (0, missing)) for table in rotary_tables(config, np.array(slots)))
    a, b = np.split(keys.astype(np.float32), 2, axis=-1)
    return np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1).astype(keys.dtype)

"""Triton's interpreter, mended where it departs from a GPU, and made to check every access to memory.

``TRITON_INTERPRET`` must be set before triton is imported, which ``tests/conftest.py`` does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter

BUILDER = interpreter.InterpreterBuilder


def _float32(handle: Any) -> np.ndarray:
    """bfloat16 is kept as its raw 16 bits."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()


@contextmanager
def mended() -> Iterator[None]:
    """bfloat16 products of numbers, not of their bits, and float32 rounded to the nearest bfloat16, not cut off."""
    cast, dot = BUILDER.cast_impl, BUILDER.create_dot

    def mended_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_bfloat16(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    def mended_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_float32(x), tl.float32) for x in (a, b))
        return dot(self, a, b, d, *rest)

    BUILDER.cast_impl, BUILDER.create_dot = mended_cast, mended_dot
    try:
        yield
    finally:
        BUILDER.cast_impl, BUILDER.create_dot = cast, dot

"""A patch for Triton's interpreter, which runs kernels on CPU tensors under ``TRITON_INTERPRET=1``.

The interpreter keeps bfloat16 as raw 16-bit integers. Triton 3.6 to 3.9 multiply matrices of those bits as if they were
the numbers, and truncate float32 where a GPU rounds to the nearest bfloat16.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


def patch() -> None:
    """Make bfloat16 behave as on a GPU from now on."""
    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot
    if cast.__module__ == __name__:
        return

    def patched_cast(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_round_to_bfloat16(source.data), tl.bfloat16)
        return cast(self, source, dtype)

    def patched_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_from_bfloat16(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, *rest)

    builder.cast_impl, builder.create_dot = patched_cast, patched_dot


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()

"""A checker of every access to memory that an interpreted kernel makes.

An access outside the tensors that the kernel was given is an error, and so is a load of memory that was never written.
During the check PyTorch fills new tensors with NaN, so a loaded NaN was never written if the inputs have none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime import interpreter

from kernels.gpu import launch


class AccessError(AssertionError):
    """Raised when a kernel accesses memory that is not its own."""


class _Memory:
    """Replaces the interpreter's loads and stores, checks each access, and passes it on."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.allowed: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check(pointers, mask, np.dtype(dtype).itemsize, "load")
        values = self._memory.load(pointers, mask, other, dtype)
        loaded = values[np.broadcast_to(mask, values.shape)]
        if np.issubdtype(loaded.dtype, np.floating) and np.isnan(loaded).any():
            raise AccessError("a load of what nothing wrote")
        return values

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        self._check(pointers, mask, values.dtype.itemsize, "store")
        return self._memory.store(pointers, values, mask)

    def _check(self, pointers: Any, mask: Any, size: int, what: str) -> None:
        addresses = pointers[np.broadcast_to(mask, pointers.shape)].astype(np.uint64)
        inside = np.zeros(addresses.shape, bool)
        for start, end in self.allowed:
            inside |= (addresses >= start) & (addresses + np.uint64(size) <= end)
        if not inside.all():
            raise AccessError(f"a {what} outside of every tensor, {np.count_nonzero(~inside)} times")


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and after its last, gaps between a view's rows included."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextmanager
def checked() -> Iterator[None]:
    """Check the memory accesses of kernels within the context."""
    memory = _Memory(interpreter._interpreter)
    unchecked = launch.Kernel.launch

    def checked_launch(self: Any, programs: int, tile: Any, arguments: dict[str, Any]) -> None:
        memory.allowed = [_extent(x) for x in arguments.values() if isinstance(x, torch.Tensor)]
        unchecked(self, programs, tile, arguments)

    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with patch.object(interpreter, "_interpreter", memory), patch.object(launch.Kernel, "launch", checked_launch):
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.utils.deterministic.fill_uninitialized_memory = before[1]

"""Triton: a kernel in two variants, one for aligned memory and one for any.

Loads are 128 bits wide only where the compiler knows that pointers and strides are multiples of 16. Triton by itself
would compile a variant for every combination that occurs; here there are two, which ``kernels.checks.compile``
compiles and checks beforehand.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels import backend
from kernels.gpu import interpreter
from kernels.gpu.block_sizes import Tile
from kernels.layouts import ALIGNMENT

if backend.interpreted():
    interpreter.patch()


class Kernel:
    """A Triton kernel that picks its variant at each launch.

    Args:
        function: the kernel's body.
        aligned: names of the pointers and strides that the aligned variant assumes to be multiples of ``ALIGNMENT``.
    """

    def __init__(self, function: Callable[..., Any], aligned: Sequence[str]) -> None:
        annotations = inspect.get_annotations(function)  # only constants have any
        names = [name for name in inspect.signature(function).parameters if name not in annotations]
        self.name = function.__name__.strip("_")
        self.aligned_names = frozenset(aligned)
        self.aligned = triton.jit(function, do_not_specialize=[name for name in names if name not in aligned])
        self.general = triton.jit(function, do_not_specialize=names)

    def launch(self, programs: int, tile: Tile, arguments: dict[str, Any]) -> None:
        """Run ``programs`` instances of the kernel on the device of the tensors."""
        is_aligned = all(_is_aligned(arguments[name]) for name in self.aligned_names)
        if _recording is not None:
            _recording.launches.append(Launch(self, is_aligned, tile, arguments))
            return
        function = self.aligned if is_aligned else self.general
        tensors = (value for value in arguments.values() if isinstance(value, Tensor))
        # Triton launches on the current device, wherever the tensors are.
        with torch.cuda.device_of(next(tensors)):  # type: ignore[no-untyped-call]
            function[(programs,)](**arguments, **tile.options())


@dataclass(frozen=True)
class Launch:
    """A launch as ``Kernel.launch`` chose it."""

    kernel: Kernel
    is_aligned: bool
    tile: Tile
    arguments: dict[str, Any]


def kernel(*aligned: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Return a decorator that turns a function into a ``Kernel``."""
    return lambda function: Kernel(function, aligned)


def card(device: torch.device) -> str | None:
    """Return the architecture that kernels are compiled for, such as ``sm_86``; None in the interpreter."""
    if _recording is not None:
        return _recording.card
    return _card(device) if device.type == "cuda" else None


@cache
def _card(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the GPU's number of multiprocessors; 0 in the interpreter, and while recording."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


@contextmanager
def recorded(card: str) -> Iterator[list[Launch]]:
    """Collect the launches of all ops on CPU tensors, as they would be chosen on ``card``.

    Nothing runs: results hold whatever was in their memory.
    """
    global _recording
    _recording = _Recording(card, [])
    try:
        with backend.force("triton", unchecked=True):
            yield _recording.launches
    finally:
        _recording = None


class _Recording(NamedTuple):
    card: str
    launches: list[Launch]


_recording: _Recording | None = None


def _is_aligned(value: Tensor | int | None) -> bool:
    if value is None:
        return True
    return (value.data_ptr() if isinstance(value, Tensor) else value) % ALIGNMENT == 0

"""A stand-in for the CUDA driver, with which Triton's JIT runs up to the launch on a machine without a GPU.

Triton chooses the variant of a kernel from the real arguments, compiles it or finds it in its cache, and loads it. The
launches are recorded, and nothing runs. Use it only in processes in which Triton does not interpret.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels import backend
from kernels.checks.cards import ARCHITECTURES
from kernels.gpu import attention

CODE = b"\x7fELF"  # how a compiled kernel begins


class Launch(NamedTuple):
    """A recorded launch of a kernel; tensors are represented by their dtypes."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    arguments: list[Any]


class StandInDriver:
    """The part of a driver that Triton's JIT uses, with the answers of a card of one architecture."""

    def __init__(self, architecture: str) -> None:
        self.launches: list[Launch] = []
        self.target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
        properties = {"max_shared_mem": ARCHITECTURES[architecture].shared_per_block}
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: properties, load_binary=self._load, unload_module=lambda _: None
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            grid, rest = arguments[:3], arguments[9:]  # between them: stream, function, metadata and hooks
            assert len(rest) == len(source.fn.arg_names)
            found = [str(each.dtype) if isinstance(each, Tensor) else each for each in rest]
            self.launches.append(Launch(source.fn.__name__.strip("_"), grid, metadata.num_warps, found))

        return launch

    @staticmethod
    def _load(_name: str, code: bytes, _shared: int, _device: int) -> tuple[object, object, int, int, int]:
        assert code.startswith(CODE)
        return object(), object(), 0, 0, 1024  # module, function, registers, spills, most threads


@contextmanager
def standing_in(architecture: str) -> Iterator[tuple[list[Launch], list[bool]]]:
    """Let ops on CPU tensors launch kernels as on that card; yield the launches and the hits in Triton's cache."""
    stand_in, hits = StandInDriver(architecture), []
    driver.set_active(stand_in)
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    try:
        with patch.object(attention, "card", lambda _: architecture), backend.force("triton", unchecked=True):
            yield stand_in.launches, hits
    finally:
        triton.knobs.compilation.listener = None
        driver._active = None


def launched(case: Any) -> None:
    """Run the case's op forward and backward; its results are whatever their memory contained."""
    from kernels.checks.cases import SEED, make_inputs, op, run

    run(op(case, torch.tensor([SEED])), case, make_inputs(case, torch.device("cpu")))

"""Marks of the tests that need a GPU or Triton's interpreter, and random inputs."""

from functools import reduce
from typing import Any

import pytest
import torch

from kernels import backend

INTERPRETED = backend.TRITON and backend.interpreted()
CARD = torch.cuda.is_available() and backend.missing(torch.device("cuda")) is None
DEVICE = torch.device("cuda" if CARD else "cpu")  # where kernels run in these tests

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs Triton (Linux) and TRITON_INTERPRET=1")

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not CARD, reason="needs an NVIDIA GPU (sm_80 or newer)")]
# Interpreted by `make test`, on hardware by `make gpu`.
NEEDS_KERNELS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or CARD), reason="needs an NVIDIA GPU (sm_80 or newer), or TRITON_INTERPRET=1"),
]


def needs_gpu(test: Any) -> Any:
    """Mark one test with ``NEEDS_GPU``."""
    return reduce(lambda marked, mark: mark(marked), NEEDS_GPU, test)


def needs_kernels(test: Any) -> Any:
    """Mark one test with ``NEEDS_KERNELS``."""
    return reduce(lambda marked, mark: mark(marked), NEEDS_KERNELS, test)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers on ``DEVICE``, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)

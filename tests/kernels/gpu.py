"""Which tests run where: kernels run in Triton's interpreter, or on a GPU under `make gpu`."""

import os

import pytest
import torch

from kernels.backend import OLDEST_CARD, TRITON

INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"
CARD = torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST_CARD

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs Triton (Linux) and TRITON_INTERPRET=1")


def needs_gpu(test: object) -> object:
    """Mark a test that `make gpu` runs."""
    skip = pytest.mark.skipif(INTERPRETED or not CARD, reason="needs an NVIDIA GPU (sm_80 or newer)")
    return pytest.mark.gpu(skip(test))

"""Every test in this folder forces the kernels, on a GPU or in Triton's interpreter."""

from collections.abc import Iterator

import pytest

from kernels import backend
from tests.kernels.marks import DEVICE


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with backend.force("triton"), DEVICE:
        yield

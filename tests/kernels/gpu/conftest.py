"""Force the kernels in every test of this folder, on a GPU or in Triton's interpreter."""

from collections.abc import Iterator

import pytest

from kernels import backend
from tests.kernels.marks import DEVICE


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with backend.force("triton"), DEVICE:
        yield

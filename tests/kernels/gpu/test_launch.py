"""Test which variant of a kernel the launcher chooses."""

import pytest
import torch

from tests.kernels.marks import needs_interpreter

pytest.importorskip("triton")
from kernels.gpu import attention
from kernels.gpu.launch import recorded


@needs_interpreter
@pytest.mark.parametrize(
    ("q", "aligned"),
    [
        (torch.zeros(2, 2, 20, 16), True),
        (torch.zeros(2, 2, 23, 16)[:, :, 3:], True),
        (torch.zeros(2, 2, 20, 15), False),  # its width
        (torch.zeros(2, 2, 20, 17)[..., :16], False),  # its strides
        (torch.zeros(2 * 2 * 20 * 16 + 1)[1:].view(2, 2, 20, 16), False),  # its address
    ],
)
def test_the_launcher_takes_the_aligned_variant_for_what_is_aligned_only(q: torch.Tensor, aligned: bool) -> None:
    with recorded("sm_86") as launches:
        attention.forward(q, q, q, 0.0, None)
    assert [launch.is_aligned for launch in launches] == [aligned]

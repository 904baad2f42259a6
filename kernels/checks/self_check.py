"""Checks, once before a training starts, that the kernels it will run work on this machine.

A kernel that does not compile or launch, or whose numbers are wrong, is reported, so that its op can fall back to
PyTorch (``kernels.backend.fall_back``). The inputs have a generator of their own: PyTorch's global ones do not advance.
"""

from collections.abc import Iterable

import torch

from kernels.checks.accuracy import measure, violation
from kernels.checks.cases import Case


class DeviceFaultError(RuntimeError):
    """Raised when a kernel leaves the GPU in a state in which this process can do no more work on it."""


def failures(everything: Iterable[Case], device: torch.device) -> dict[str, str]:
    """Return the reason of each op's first failing call, by op; ops that work are left out.

    Args:
        everything: such as ``kernels.checks.cases.step_cases`` returns for the training's model and a small batch.

    Raises DeviceFaultError if a kernel ends in a GPU fault.
    """
    found: dict[str, str] = {}
    for case in everything:
        try:
            reason = next(filter(None, map(violation, measure(case, device))), None)
        except Exception as error:  # whatever Triton, its compiler or the driver raise
            reason = _first_line(error)
            _check_alive(case, device, reason)
        if reason is not None:
            found.setdefault(case.op, reason)
    return found


def _check_alive(case: Case, device: torch.device, reason: str) -> None:
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception as error:
            raise DeviceFaultError(
                f"the kernel of {case.op} ended in a fault of the GPU ({reason}); "
                "set CHARFORMER_KERNELS=pytorch to train without our kernels"
            ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]

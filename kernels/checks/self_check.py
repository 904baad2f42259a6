"""Whether the kernels that a training will run work on this machine, seen once before it starts.

A kernel that does not compile or launch, or whose numbers are wrong, is named, so that its op can fall back to PyTorch
(``kernels.backend.fall_back``). The inputs have a generator of their own: PyTorch's global ones do not move.
"""

from collections.abc import Iterable

import torch

from kernels.checks.accuracy import measure, violation
from kernels.checks.cases import Case


class DeviceFaultError(RuntimeError):
    """A kernel left the GPU in a state in which this process can do nothing more on it."""


def failures(everything: Iterable[Case], device: torch.device) -> dict[str, str]:
    """Return, by op, what is wrong with the first of its calls that fails; nothing for ops that work.

    Args:
        everything: such as ``kernels.checks.cases.step_cases`` gives for the training's model and a small batch.

    Raises DeviceFaultError where a kernel ends in a fault of the GPU.
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

"""Which code an op runs: Triton kernels, the same arithmetic in PyTorch, or PyTorch's own functions.

The environment variable ``CHARFORMER_KERNELS`` names it: ``auto`` (kernels on NVIDIA GPUs of sm_80 or newer where
Triton works; elsewhere PyTorch's own functions and, where those are slow on a CPU, ``kernels.cpu``), ``triton``
(kernels always: on CPU tensors they need Triton's interpreter, ``TRITON_INTERPRET=1``) or ``reference`` (the kernels'
arithmetic and dropout masks, in plain PyTorch).
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "reference")
TRITON = importlib.util.find_spec("triton") is not None
OLDEST_CARD = (8, 0)  # Triton has no path to the tensor cores of older ones

_forced: str | None = None
_unchecked = False
_driver_failure: str | None = None
_driver_tried = False


class KernelsUnavailableError(RuntimeError):
    """``triton`` was asked for where Triton cannot run, or ``CHARFORMER_KERNELS`` names no backend."""


@contextmanager
def force(backend: str, unchecked: bool = False) -> Iterator[None]:
    """Run ops on ``backend``, whatever ``CHARFORMER_KERNELS`` says.

    Args:
        unchecked: whether kernels may be called where they cannot run, since their launches are only recorded.
    """
    global _forced, _unchecked
    before = _forced, _unchecked
    _forced, _unchecked = backend, unchecked
    try:
        yield
    finally:
        _forced, _unchecked = before


def chosen() -> str:
    """The backend asked for. Raises KernelsUnavailableError for a name that is none."""
    name = _forced or os.environ.get("CHARFORMER_KERNELS") or "auto"
    if name not in BACKENDS:
        raise KernelsUnavailableError(f"CHARFORMER_KERNELS is {name!r}; it can be {', '.join(BACKENDS)}")
    return name


def interpreted() -> bool:
    """Whether Triton interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_registered_op(x: Tensor) -> bool:
    """Whether an op on ``x`` goes through its registered form, not PyTorch's own functions."""
    if chosen() == "auto":
        return x.is_cuda and x.dtype != torch.float64 and missing(x.device) is None
    return True


def runs_kernel(x: Tensor) -> bool:
    """Whether a registered op on ``x`` runs its kernel. Raises KernelsUnavailableError where it must and cannot."""
    check(x.device)
    return x.dtype != torch.float64 and (chosen() == "triton" or (chosen() == "auto" and x.is_cuda))


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is a CPU's and no compiler traces the op, which could not see through ``kernels.cpu``."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check(device: torch.device) -> None:
    """Raise KernelsUnavailableError where kernels are asked for and cannot run on ``device``."""
    if chosen() != "triton" or _unchecked or (TRITON and interpreted()):
        return
    if reason := missing(device):
        instead = ", or TRITON_INTERPRET=1, under which Triton interprets them" if TRITON else ""
        raise KernelsUnavailableError(f"CHARFORMER_KERNELS=triton, but {reason}{instead}")


def missing(device: torch.device) -> str | None:
    """What stands in the way of compiled kernels on ``device``; None if they run there."""
    if not TRITON:
        return "Triton is not installed; it comes for Linux on x86-64"
    if device.type != "cuda" or torch.version.hip is not None:  # AMD's call themselves CUDA devices too
        return "the kernels need an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < OLDEST_CARD:
        return "the kernels need an NVIDIA GPU of sm_80 or newer"
    if interpreted():
        return "TRITON_INTERPRET=1 is set, under which Triton compiles nothing"
    return _missing_driver()


def describe(device: torch.device) -> str:
    """One line on what the ops run on ``device``, for people."""
    if chosen() != "auto":
        return f"kernels: {chosen()} (CHARFORMER_KERNELS)"
    reason = missing(device)
    return "kernels: Triton" if reason is None else f"kernels: plain PyTorch ({reason})"


def _missing_driver() -> str | None:
    """Triton builds its driver by the C compiler when it is first used, which a small container may lack."""
    global _driver_failure, _driver_tried
    if not _driver_tried and not torch.compiler.is_compiling():  # a compiler could not trace it
        _driver_tried = True
        try:
            from triton.runtime import driver

            driver.active.get_current_device()
        except Exception as error:  # whatever is missing, PyTorch alone trains
            reason = str(error).strip().partition("\n")[0]
            _driver_failure = f"Triton cannot build its driver: {type(error).__name__}: {reason}"
    return _driver_failure

"""Which code an op runs: Triton kernels, the same arithmetic in PyTorch, or PyTorch's own functions.

The environment variable ``CHARFORMER_KERNELS`` names it: ``auto`` (kernels on NVIDIA GPUs of sm_80 or newer where
Triton is installed, PyTorch's own functions elsewhere), ``triton`` (kernels always: on CPU tensors they need Triton's
interpreter, ``TRITON_INTERPRET=1``) or ``reference`` (the kernels' arithmetic and dropout masks, in plain PyTorch).
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


class KernelsUnavailableError(RuntimeError):
    """``triton`` was asked for where Triton cannot run, or ``CHARFORMER_KERNELS`` names no backend."""


@contextmanager
def force(backend: str) -> Iterator[None]:
    """Run ops on ``backend``, whatever ``CHARFORMER_KERNELS`` says."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def chosen() -> str:
    """The backend asked for. Raises KernelsUnavailableError for a name that is none."""
    name = _forced or os.environ.get("CHARFORMER_KERNELS") or "auto"
    if name not in BACKENDS:
        raise KernelsUnavailableError(f"CHARFORMER_KERNELS is {name!r}; it can be {', '.join(BACKENDS)}")
    return name


def runs_registered_op(x: Tensor) -> bool:
    """Whether an op on ``x`` goes through its registered form, not PyTorch's own functions."""
    if chosen() == "auto":
        return x.is_cuda and TRITON and x.dtype != torch.float64 and _has_kernels(x.device)
    return True


def runs_kernel(x: Tensor) -> bool:
    """Whether a registered op on ``x`` runs its kernel. Raises KernelsUnavailableError where it must and cannot."""
    check(x.device)
    return chosen() == "triton" or (chosen() == "auto" and x.is_cuda)


def check(device: torch.device) -> None:
    """Raise KernelsUnavailableError where kernels are asked for and cannot run on ``device``."""
    if chosen() != "triton":
        return
    if not TRITON:
        raise KernelsUnavailableError("CHARFORMER_KERNELS=triton, but Triton is not installed: it comes for Linux only")
    if device.type == "cuda":
        if not _has_kernels(device):
            raise KernelsUnavailableError("CHARFORMER_KERNELS=triton needs an NVIDIA GPU of sm_80 or newer")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelsUnavailableError(
            "CHARFORMER_KERNELS=triton needs an NVIDIA GPU, or TRITON_INTERPRET=1 for Triton's interpreter"
        )


def describe(device: torch.device) -> str:
    """One line on what the ops run on ``device``, for people."""
    if chosen() != "auto":
        return f"kernels: {chosen()} (CHARFORMER_KERNELS)"
    if device.type != "cuda":
        return "kernels: PyTorch's own functions (Triton kernels are for GPUs)"
    if not TRITON:
        return "kernels: PyTorch's own functions (Triton is not installed; on a GPU it would be faster)"
    if not _has_kernels(device):
        return "kernels: PyTorch's own functions (Triton kernels need an NVIDIA GPU of sm_80 or newer)"
    return "kernels: Triton"


def _has_kernels(device: torch.device) -> bool:
    """Whether a GPU is one that the kernels were compiled for; AMD's call themselves CUDA devices too."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= OLDEST_CARD

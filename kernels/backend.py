"""Chooses the code that an op runs: Triton kernels, the same arithmetic in PyTorch, or PyTorch's own functions.

The environment variable ``CHARFORMER_KERNELS`` sets it: ``auto`` (kernels on NVIDIA GPUs of sm_80 or newer where
Triton works; elsewhere PyTorch's own functions and, where those are slow on a CPU, ``kernels.cpu``), ``triton``
(kernels always: on CPU tensors they need Triton's interpreter, ``TRITON_INTERPRET=1``), ``reference`` (the kernels'
arithmetic and dropout masks, in plain PyTorch) or ``pytorch`` (PyTorch's own functions, on every device).
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "reference", "pytorch")
OPS = ("attention", "layer_norm", "add_dropout_layer_norm", "cross_entropy", "rotary")
TRITON = importlib.util.find_spec("triton") is not None
OLDEST_CARD = (8, 0)  # Triton cannot use the tensor cores of older GPUs

_forced: str | None = None
_unchecked = False
_fallen: dict[str, str] = {}  # the reason, by op


class KernelsUnavailableError(RuntimeError):
    """Raised where ``triton`` is requested but cannot run, or where ``CHARFORMER_KERNELS`` names no backend."""


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


def fall_back(op: str, reason: str) -> None:
    """Make an op of ``OPS`` run PyTorch's own functions instead of its kernel, until ``forget`` is called."""
    _fallen[op] = reason


def fallen() -> dict[str, str]:
    """Return the ops that have fallen back to PyTorch, each with the reason."""
    return dict(_fallen)


def forget() -> None:
    """Let every op run its kernel again, and drop the cached findings about each device."""
    _fallen.clear()
    _find_missing.cache_clear()


def chosen() -> str:
    """Return the requested backend. Raises KernelsUnavailableError for an unknown name."""
    name = _forced or os.environ.get("CHARFORMER_KERNELS") or "auto"
    if name not in BACKENDS:
        raise KernelsUnavailableError(f"CHARFORMER_KERNELS is {name!r}; it can be {', '.join(BACKENDS)}")
    return name


def interpreted() -> bool:
    """Return whether Triton interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_registered_op(op: str, x: Tensor) -> bool:
    """Return whether an op on ``x`` goes through its registered form, not PyTorch's own functions."""
    name = chosen()
    if name == "reference":
        return True
    if name == "pytorch" or op in _fallen:
        return False
    return name == "triton" or (x.is_cuda and x.dtype != torch.float64 and missing(x.device) is None)


def runs_kernel(x: Tensor) -> bool:
    """Return whether a registered op on ``x`` runs its kernel. Raises KernelsUnavailableError if it must but cannot."""
    check(x.device)
    return x.dtype != torch.float64 and (chosen() == "triton" or (chosen() == "auto" and x.is_cuda))


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Return whether an op on ``x`` may run ``kernels.cpu``, which no compiler can trace."""
    return x.device.type == "cpu" and chosen() != "pytorch" and not torch.compiler.is_compiling()


def check(device: torch.device) -> None:
    """Raise KernelsUnavailableError if kernels are requested but cannot run on ``device``."""
    if chosen() != "triton" or _unchecked or (TRITON and interpreted()):
        return
    if reason := missing(device):
        instead = ", or TRITON_INTERPRET=1, under which Triton interprets them" if TRITON else ""
        raise KernelsUnavailableError(f"CHARFORMER_KERNELS=triton, but {reason}{instead}")


def missing(device: torch.device) -> str | None:
    """Return the reason why compiled kernels cannot run on ``device``; None if they can."""
    if not TRITON:
        return "Triton is not installed; it comes for Linux on x86-64"
    if interpreted() and device.type == "cuda":
        return "TRITON_INTERPRET=1 is set, under which Triton compiles nothing"
    # Every op calls this, and a driver query each time would keep a GPU waiting. A compiler cannot trace the cache.
    find = _find_missing.__wrapped__ if torch.compiler.is_compiling() else _find_missing
    return find(device)


def on(device: torch.device) -> dict[str, str]:
    """Return the backend of each op on ``device``: "triton", "reference" or "pytorch"."""
    name = chosen()
    if name == "auto":
        name = "pytorch" if missing(device) else "triton"
    return {op: "pytorch" if name == "triton" and op in _fallen else name for op in OPS}


def describe(device: torch.device) -> str:
    """Return one readable line about what the ops run on ``device``."""
    if chosen() != "auto":
        return f"kernels: {chosen()} (CHARFORMER_KERNELS)"
    reason = missing(device)
    return "kernels: Triton" if reason is None else f"kernels: plain PyTorch ({reason})"


@cache
def _find_missing(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:  # PyTorch calls AMD's GPUs CUDA devices too
        return "the kernels need an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < OLDEST_CARD:
        return "the kernels need an NVIDIA GPU of sm_80 or newer"
    return _driver_failure()


def _driver_failure() -> str | None:
    """Return why Triton has no driver, or None: it builds one with a C compiler, which a small container may lack."""
    if torch.compiler.is_compiling():  # which cannot trace this; whoever compiles a step has run one before
        return None
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # whatever is missing, training works with PyTorch alone
        reason = str(error).strip().partition("\n")[0]
        return f"Triton cannot build its driver: {type(error).__name__}: {reason}"
    return None

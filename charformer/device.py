"""The machine that a run uses: its device, its fastest dtype and its memory."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from charformer.config import DEVICES
from charformer.errors import UserError
from kernels import backend


def choose_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` is the NVIDIA GPU if there is one, else the CPU. Also turn off TF32.

    Raises UserError for an unavailable GPU, or for kernels (``CHARFORMER_KERNELS``) that cannot run on the device.
    """
    if name not in DEVICES:
        raise UserError(f"`device` is {name!r}; it must be one of {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA GPU here; pass `device` cpu, or install a CUDA build of torch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("PyTorch finds no Apple GPU here; pass `device` cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # NVIDIA's images turn TF32 on with an environment variable, but scores and --dtype float32 need full float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(name)
    try:
        backend.check(device)
    except backend.KernelsUnavailableError as error:
        raise UserError(str(error)) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name; ``auto`` is bfloat16 where the hardware multiplies it natively, else float32.

    The hardware is an NVIDIA GPU or an x86 processor. ARM processors and Apple's GPUs with bfloat16 count as not having
    it, because PyTorch's bfloat16 on them has not been measured for this project.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        native = False
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context in which matrix products on ``device`` use ``dtype``."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def copy_to_device(tensor: torch.Tensor, device: torch.device, out: torch.Tensor | None = None) -> torch.Tensor:
    """Copy a tensor from the CPU to ``device``, over ``out`` if it is given; return the copy.

    A copy to an NVIDIA GPU does not wait: PyTorch keeps pinned memory until the copy is done. Every other copy waits,
    since PyTorch's copies to Apple's GPUs that do not wait may read the memory of a tensor that is already freed
    (https://github.com/pytorch/pytorch/issues/189690).
    """
    is_cuda = device.type == "cuda"
    source = tensor.pin_memory() if is_cuda else tensor
    return source.to(device, non_blocking=is_cuda) if out is None else out.copy_(source, non_blocking=is_cuda)


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the machine's entry in config.json; on a GPU it includes the implementation of each op."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    about = {
        "device": device.type,
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    return about | ({"kernels": backend.on(device)} if device.type == "cuda" else {})


def synchronize(device: torch.device) -> None:
    """Wait until everything that was queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning every large tensor to the system at each step.

    Otherwise each step would fault the same pages in again. Except on Linux with glibc, this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)  # the maximum of an older glibc
        mallopt(m_trim_threshold, 2**31 - 1)


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of memory of the GPU or the machine; None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_bytes(device: torch.device) -> int | None:
    """Return this process's peak memory in bytes, allocated on an NVIDIA GPU or else resident; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # its getrusage also counts the parent's memory, from the time between fork and exec
        try:
            status = Path("/proc/self/status").read_text("utf-8")
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024
        except (OSError, IndexError):  # a sandbox without /proc
            return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

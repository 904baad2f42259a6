"""Call our kernels under compute-sanitizer's memcheck, where that is installed."""

import os
import shutil
import subprocess
import sys

from bench.gpu_stages.visit import Stage, Visit
from kernels import backend

ERRORS = 9  # the exit code with which memcheck reports that it found errors


def run(visit: Visit) -> Stage:
    """Yield the tool's output. Raise RuntimeError if it finds an error."""
    if not backend.TRITON:
        yield {"part": "memcheck", "note": "Triton is not installed"}
        return "Triton is not installed"
    command = [sys.executable, "-m", "bench.gpu_stages.kernel_calls"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tool = shutil.which("compute-sanitizer")
    if visit.on_gpu and tool is None:
        yield {"part": "memcheck", "note": "compute-sanitizer is not installed"}
        return "compute-sanitizer is not installed"
    if visit.on_gpu and tool:
        command = [tool, "--tool", "memcheck", "--error-exitcode", str(ERRORS), *command]
    else:
        environment["TRITON_INTERPRET"] = "1"
    try:
        timeout = max(1.0, visit.left - 1)
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("memcheck took longer than the stage's time") from error
    lines = (done.stdout + done.stderr).strip().splitlines()
    summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line), lines[-1] if lines else "silent")
    yield {
        "part": "memcheck",
        "tool": tool if visit.on_gpu else None,
        "exit_code": done.returncode,
        "said": lines[-40:],
    }
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {summary}")
    return summary.strip("= ")

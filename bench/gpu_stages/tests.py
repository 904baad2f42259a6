"""Run the tests that need a GPU, where pytest is installed."""

import os
import subprocess
import sys
from importlib.util import find_spec

from bench.gpu_stages.visit import Stage, Visit
from bench.harness.interleave import ROOT


def run(visit: Visit) -> Stage:
    """Yield pytest's last lines. Raise RuntimeError if a test fails."""
    if find_spec("pytest") is None:
        yield {"part": "tests", "note": "pytest is not installed"}
        return "pytest is not installed"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    if not visit.on_gpu:
        command = [*command[:-1], "--collect-only", "tests/kernels/checks"]
    environment = os.environ | {"TRITON_INTERPRET": "0" if visit.on_gpu else "1"}
    try:
        timeout = max(1.0, visit.left - 1)
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", cwd=ROOT, env=environment, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError("the tests took longer than the stage's time") from error
    lines = done.stdout.strip().splitlines()
    yield {"part": "tests", "exit_code": done.returncode, "said": lines[-40:]}
    if done.returncode:
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return lines[-1]

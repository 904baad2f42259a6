"""Run the tests that need a GPU, where pytest is installed; without a GPU, only collect some."""

import sys
from importlib.util import find_spec

from bench.gpu_stages.visit import Stage, Visit


def run(visit: Visit) -> Stage:
    """Yield pytest's last lines. Raise RuntimeError if a test fails."""
    if find_spec("pytest") is None:
        yield {"part": "tests", "note": "pytest is not installed"}
        return "pytest is not installed"
    chosen = ["tests"] if visit.on_gpu else ["--collect-only", "tests/kernels/checks"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *chosen]
    return (yield from visit.report("tests", command, TRITON_INTERPRET="0" if visit.on_gpu else "1"))

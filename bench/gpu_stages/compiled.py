"""Time the steps of the stage `steps` under torch.compile, at `baseline`'s shape."""

from bench.gpu_stages.steps import rows
from bench.gpu_stages.visit import Stage, Visit


def run(visit: Visit) -> Stage:
    """Yield a row for each engine; its first step, which compiles, is timed separately."""
    return rows(visit, ["baseline"], ["compiled"])

"""Compare every op with float64, at the shapes of the checks and of the presets' steps, in several processes."""

from functools import partial

import torch

from bench.gpu_stages.compiling import preset_cases
from bench.gpu_stages.visit import Stage, Visit
from kernels.checks.accuracy import GPU_PROCESSES, measure_apart, violation
from kernels.checks.cases import Case, cases
from kernels.checks.workers import Failed, run_each


def run(visit: Visit) -> Stage:
    """Yield the error of each result. Raise RuntimeError after the last row if a kernel is wrong."""
    wanted, processes = [*preset_cases(), *cases()], GPU_PROCESSES
    if not visit.on_gpu:
        wanted = [Case("layer_norm", torch.bfloat16, 7, 35), Case("attention", torch.float32, 33, 16, 0.2)]
        processes = 1
    violations, count = [], 0
    for case, found in run_each(partial(measure_apart, device=visit.device.type), wanted, processes):
        if isinstance(found, Failed):
            violations.append(f"{case}: {found.reason}")
            yield {"part": "accuracy", "op": case.op, "case": str(case), "error": found.reason}
        else:
            violations += filter(None, map(violation, found))
            count += len(found)
            for row in found:
                yield {"part": "accuracy", **row}
    if violations:
        raise RuntimeError(f"{len(violations)} violations: {violations[0]}")
    return f"{count} results of {len(wanted)} calls are right, and the same twice"

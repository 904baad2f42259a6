"""Time several block sizes of attention at head width 64 in bf16, and check the results of the fastest."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from bench.gpu_stages.op_times import baseline_shape, calls
from bench.gpu_stages.visit import Stage, Visit
from bench.harness.results import percentiles
from bench.harness.timing import as_graph, cold_seconds
from kernels import backend
from kernels.checks.accuracy import measure, violation
from kernels.checks.cases import Case, make_inputs, op
from kernels.checks.workers import Failed, run_each

ROUNDS = {"cuda": 30, "cpu": 1}
# Rows, columns, warps and stages to try besides those that the kernels use today.
CANDIDATES = {
    "forward": [(64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2)],
    "dq": [(64, 64, 4, 2), (128, 32, 8, 2)],
    "dkv": [(64, 32, 4, 3), (128, 32, 8, 2), (64, 64, 8, 2)],
}

Sizes = tuple[int, int, int, int]
Trial = dict[str, Sizes]  # by kernel; a kernel that is not named keeps its own sizes


def run(visit: Visit) -> Stage:
    """Yield the seconds of each trial, then the errors of attention with the best sizes of each kernel combined."""
    shape = baseline_shape(visit)
    width = 64 if visit.on_gpu else 16
    case = Case("attention", torch.bfloat16, shape.time, width, 0.2, "packed", shape.batch, shape.heads)
    trials: list[Trial] = [{}]
    for kernel, sizes in CANDIDATES.items():
        trials += [{kernel: size} for size in (sizes if visit.on_gpu else sizes[:1])]
    timings: list[tuple[Trial, dict[str, Any]]] = []
    # In a process of its own, since a trial might cause a GPU fault.
    for trial, found in run_each(partial(timed, case=case, device=visit.device.type), trials, 1):
        row = {"part": "block_sizes", "trial": trial}
        if isinstance(found, Failed):
            yield row | {"error": found.reason}
        else:
            yield row | {"forward_seconds": found["forward"], "both_seconds": found["both"]}
            timings.append((trial, found))
    best: Trial = {}
    for kernel in CANDIDATES:
        direction = "forward" if kernel == "forward" else "both"
        own = [(found[direction]["p50"], trial) for trial, found in timings if not trial or kernel in trial]
        best |= min(own, key=itemgetter(0), default=(0.0, {}))[1]
    ((_, rows),) = run_each(partial(checked, case=case, device=visit.device.type), [best], 1)
    if isinstance(rows, Failed):
        raise RuntimeError(f"with {best}: {rows.reason}")
    violations = list(filter(None, map(violation, rows)))
    yield {"part": "block_sizes", "trial": best, "fastest": True, "results": rows, "violations": violations}
    if violations:
        raise RuntimeError(f"with {best}: {violations[0]}")
    return f"fastest: {best or 'the sizes of today'}; its results are right"


def timed(trial: Trial, case: Case, device: str) -> dict[str, Any]:
    """Return percentiles of attention's seconds, forward and forward + backward, with a trial's block sizes."""
    place = torch.device(device)
    inputs = make_inputs(case, place)
    found = {}
    with backend.force("triton"), sizes(trial, case):
        for name in ("forward", "both"):
            call = as_graph(calls(case, op(case), inputs, backward=name == "both"), place)
            found[name] = percentiles(cold_seconds(call, ROUNDS[device], place))
    return found


def checked(trial: Trial, case: Case, device: str) -> list[dict[str, Any]]:
    """Return the errors of attention's results with a trial's block sizes."""
    with sizes(trial, case):
        return measure(case, torch.device(device))


@contextmanager
def sizes(trial: Trial, case: Case) -> Iterator[None]:
    """Use a trial's block sizes for attention of the case's width on every card, within the context."""
    from kernels.gpu import block_sizes

    keys = {(kernel, case.width, 2): block_sizes.Tile(*size) for kernel, size in trial.items()}
    everywhere, by_card = block_sizes.ATTENTION, block_sizes.ATTENTION_BY_CARD
    own = dict(everywhere), dict(by_card)
    everywhere.update(keys)
    for key in [key for key in by_card if key[1:] in keys]:
        del by_card[key]
    try:
        yield
    finally:
        everywhere.update(own[0])
        by_card.update(own[1])

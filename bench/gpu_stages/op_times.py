"""Time ops as CUDA graphs with a cold level-2 cache: ours, flash and cuDNN attention, and PyTorch's other functions."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu_stages.visit import TINY, VOCABULARY, Stage, Visit
from bench.harness.results import percentiles
from bench.harness.timing import as_graph, cold_seconds
from charformer.presets import PRESETS
from kernels.checks import roofline
from kernels.checks.cases import Case, Op, make_gradients, make_inputs, op, plain_op, step_cases

ROUNDS = {"cuda": 50, "cpu": 2}
DROPOUTS = (0.0, 0.2)


def run(visit: Visit) -> Stage:
    """Yield the seconds of each op, dropout rate, engine and pass."""
    shape = baseline_shape(visit)
    rounds = ROUNDS[visit.device.type]
    ceilings = visit.found("facts", "ceilings")
    bandwidth = ceilings.get("copy_bytes_per_second", {}).get("p50")
    work = roofline.work(shape)
    medians: dict[tuple[str, float, str], float] = {}
    subjects = [(case, engine, side) for case in wanted(shape) for engine, side in sides(case, visit).items()]
    # cuDNN's attention may fail while it is captured, after which other calls might fail too, so it comes last.
    for case, engine, side in sorted(subjects, key=lambda subject: subject[1] == "cudnn"):
        inputs = make_inputs(case, visit.device)
        for name, directions in {"forward": ("forward",), "both": ("forward", "backward")}.items():
            about = {"part": "ops", "op": case.op, "dropout": case.dropout_p, "engine": engine, "pass": name}
            try:
                call = as_graph(calls(case, side, inputs, backward=name == "both"), visit.device)
                seconds = percentiles(cold_seconds(call, rounds, visit.device))
            except RuntimeError as error:  # for example a backend of PyTorch's attention without dropout
                yield about | {"error": str(error).partition("\n")[0]}
                continue
            moved = sum(work[case.op, direction].fused_bytes for direction in directions)
            share = moved / seconds["p50"] / bandwidth if bandwidth else None
            yield about | {"seconds": seconds, "bytes": moved, "bandwidth_share": share, "samples": rounds}
            if name == "both":
                medians[case.op, case.dropout_p, engine] = seconds["p50"]
    ratios = []
    for name, p in dict.fromkeys(key[:2] for key in medians):
        mine = {engine: seconds for (*about, engine), seconds in medians.items() if about == [name, p]}
        ours = mine.pop("charformer", None)
        ratios += [f"{name} {p:g}: {min(mine.values()) / ours:.2f}"] if ours and mine else []
    return f"seconds of the fastest other over ours, forward + backward: {', '.join(ratios)}"


def baseline_shape(visit: Visit) -> roofline.Shape:
    """Return the shape of `baseline`'s step or, in a rehearsal, of a tiny one."""
    model = PRESETS["baseline"].model
    if visit.on_gpu:
        return roofline.Shape(32, model.block_size, model.n_head, model.n_embd // model.n_head, VOCABULARY)
    return roofline.Shape(2, TINY["block_size"], TINY["n_head"], 16, VOCABULARY)


def wanted(shape: roofline.Shape) -> list[Case]:
    """Return the cases to time; ops with dropout have one for each of ``DROPOUTS``."""
    found = []
    for p in DROPOUTS:
        found += step_cases(torch.bfloat16, shape.batch, shape.time, shape.heads, shape.width, shape.vocab, p, p)
    found.append(Case("rotary", torch.bfloat16, shape.time, shape.width, batch=shape.batch, heads=shape.heads))
    return list(dict.fromkeys(found))


def sides(case: Case, visit: Visit) -> dict[str, Op]:
    """Return our op and its alternatives in PyTorch, by engine."""
    if case.op != "attention":
        return {"charformer": op(case), "torch": plain_op(case)}
    found = {"charformer": op(case)}
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, chosen in backends.items() if visit.on_gpu else {"math": SDPBackend.MATH}.items():
        found[name] = partial(attention, chosen, case.dropout_p)
    return found


def attention(chosen: SDPBackend, dropout_p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the output of PyTorch's attention with one of its backends."""
    with sdpa_kernel(chosen):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


def calls(case: Case, side: Op, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    """Return a function that runs the op forward, or forward and backward."""
    leaves = [x for x in inputs.values() if x.requires_grad]

    def forward() -> tuple[Tensor, ...]:
        outputs = side(*inputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    if not backward:
        return forward
    gradients = make_gradients(case, forward())
    return lambda: torch.autograd.grad(forward(), leaves, gradients)

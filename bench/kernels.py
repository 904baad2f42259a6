"""Time the GPU's ops against PyTorch's own, eager and compiled, in seconds and as shares of the card's measured peaks.

    python -m bench.kernels --json bench/results/kernels-gpu.json

Inputs are those of a training step under bf16 autocast: branches are bf16, and the residual stream, which layer norms
read, is float32. Every engine is credited with the FLOPs and bytes of our kernels (``kernels.checks.roofline``), so
that shares compare in the same way as seconds, although another engine may recompute less and read more.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.harness import results
from kernels import backend, ops, reference
from kernels.checks import accuracy, roofline
from kernels.checks.cases import DTYPE_NAMES, Case, Op, make_gradients, make_inputs, op, step_cases
from kernels.checks.cli import guarded, positive, writable_file

DROPOUTS = (0.0, 0.2)
PASSES = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}
WARM_UP = 5
FLUSH_BYTES = 2**29  # far more than any level-2 cache
FLUSHES = 8  # keep the GPU busy until Python has queued the timed call, so that it never waits for a launch
COPY_BYTES = 2**29
MATMUL_SIZE = 8192

Row = dict[str, Any]
Prepare = Callable[[], Callable[[], object]]  # does the work that is not timed, and returns the call that is


class WrongResultError(Exception):
    """Raised when an op's result is too far from float64."""


class Ceilings(NamedTuple):
    """The measured peaks of this card: bytes/s of a large copy, and FLOP/s of a large bf16 matrix product."""

    bandwidth: float
    peak: float


def main(arguments: list[str] | None = None) -> int:
    """Check the ops, time them and print; return the exit code, 2 without a GPU and 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.partition("\n\n")[0])
    roofline.add_shape_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=50, help="timed calls of each op (default: %(default)s)")
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write the result to this file")
    args = parser.parse_args(arguments)
    if args.width > ops.MAX_HEAD_WIDTH:
        parser.error(f"--width is {args.width}; the kernels go up to {ops.MAX_HEAD_WIDTH}")
    reason = backend.missing(torch.device("cuda")) if torch.cuda.is_available() else "PyTorch finds no CUDA GPU here"
    if reason:
        print(f"bench.kernels needs an NVIDIA GPU (sm_80 or newer): {reason}", file=sys.stderr)
        return 2
    shape = roofline.Shape(args.batch, args.time, args.heads, args.width, args.vocab)
    try:
        with backend.force("triton"):
            ceilings, rows = _measure(shape, args.rounds)
    except backend.KernelsUnavailableError as error:
        print(f"bench.kernels: {error}", file=sys.stderr)
        return 2
    except WrongResultError as error:
        print(f"bench.kernels: {error}", file=sys.stderr)
        return 1
    if args.json:
        config = {name: value for name, value in vars(args).items() if name != "json"}
        facts = {"measured": {"bytes_per_second": ceilings.bandwidth, "flops_per_second": ceilings.peak}}
        kept = [{key: value for key, value in row.items() if key != "turns"} for row in rows]
        results.write_result(args.json, results.result("kernels", config, kept) | facts)
    _print(rows, ceilings)
    return 0


def cases(shape: roofline.Shape) -> list[Case]:
    """Return a case for every op at ``shape``; ops with dropout have one for each of ``DROPOUTS``."""
    found = []
    for p in DROPOUTS:
        found += step_cases(torch.bfloat16, shape.batch, shape.time, shape.heads, shape.width, shape.vocab, p, p)
    found.append(Case("rotary", torch.bfloat16, shape.time, shape.width, batch=shape.batch, heads=shape.heads))
    return list(dict.fromkeys(found))


def sides(case: Case) -> dict[str, Op]:
    """Return our op, PyTorch's own functions, and those compiled, by engine. Dropout takes a new seed for each call."""

    def plain(*inputs: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the strongest peer; other ops ignore this setting
            return op(case, module=reference)(*inputs)  # without a seed, the reference calls PyTorch's own functions

    return {"charformer": op(case), "torch": plain, "torch-compile": torch.compile(plain, dynamic=False)}


def check(case: Case, device: torch.device) -> float:
    """Return the largest root mean square error of our op's results and gradients against float64.

    Raise WrongResultError where ``kernels.checks.accuracy`` reports a violation.
    """
    rows = accuracy.measure(case, device)
    for violation in filter(None, map(accuracy.violation, rows)):
        raise WrongResultError(violation)
    return max(float(row["rms_error"]) for row in rows)


def prepared(case: Case, inputs: dict[str, Tensor], side: Op, direction: str) -> Prepare:
    """Return the function that the timer calls for one of ``PASSES``; each backward pass gets a graph of its own."""
    leaves = [x for x in inputs.values() if x.requires_grad]
    gradients: list[Tensor | None] = []

    def forward() -> tuple[Tensor, ...]:
        outputs = side(*inputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def backward(outputs: tuple[Tensor, ...]) -> object:
        if not gradients:  # on the first call, which is not timed
            gradients.extend(make_gradients(case, outputs))
        return torch.autograd.grad(outputs, leaves, gradients)

    if direction == "forward":
        return lambda: forward
    if direction == "backward":
        return lambda: partial(backward, forward())
    return lambda: lambda: backward(forward())


def row(
    case: Case,
    shape: roofline.Shape,
    ceilings: Ceilings,
    engine: str,
    direction: str,
    samples: list[float],
    error: float | None,
) -> Row:
    """Return one row of the result; ``samples`` are seconds."""
    work = roofline.work(shape)
    parts = [work[case.op, part] for part in PASSES[direction]]
    moved, flops = sum(part.fused_bytes for part in parts), sum(part.flops for part in parts)
    median = float(np.median(samples))
    return results.row(
        engine=engine,
        op=case.op,
        dropout=case.dropout_p,
        precision=DTYPE_NAMES[case.dtype],
        batch=shape.batch,
        context=shape.time,
        seconds=results.percentiles(samples),
        samples=len(samples),
        turns=samples,
        bytes=moved,
        flops=flops,
        bandwidth_share=moved / median / ceilings.bandwidth,
        peak_share=flops / median / ceilings.peak if flops else None,
        error=error,
        **{"pass": direction},
    )


def _measure(shape: roofline.Shape, rounds: int) -> tuple[Ceilings, list[Row]]:
    device = torch.device("cuda")
    everything = cases(shape)
    errors = [check(case, device) for case in everything]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    ceilings = _ceilings(rounds, flush)
    rows = []
    for case, error in track(list(zip(everything, errors, strict=True)), "timing", console=Console(stderr=True)):
        engines, inputs = sides(case), make_inputs(case, device)
        for direction in PASSES:
            runs = {engine: prepared(case, inputs, side, direction) for engine, side in engines.items()}
            for engine, samples in _seconds(runs, rounds, flush).items():
                own_error = error if engine == "charformer" else None
                rows.append(row(case, shape, ceilings, engine, direction, samples, own_error))
    return ceilings, rows


def _ceilings(rounds: int, flush: Tensor) -> Ceilings:
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    matrix = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda").bfloat16()
    runs: dict[str, Prepare] = {
        "copy": lambda: lambda: copy.copy_(source),
        "matmul": lambda: lambda: matrix @ matrix,
    }
    medians = {name: float(np.median(samples)) for name, samples in _seconds(runs, rounds, flush).items()}
    return Ceilings(2 * COPY_BYTES / medians["copy"], 2 * MATMUL_SIZE**3 / medians["matmul"])


def _seconds(runs: dict[str, Prepare], rounds: int, flush: Tensor) -> dict[str, list[float]]:
    """Return the GPU's seconds for each run; the runs take turns, each with a cold level-2 cache."""
    for prepare in runs.values():
        for _ in range(WARM_UP):
            prepare()()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, prepare in runs.items():
            timed = prepare()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            for _ in range(FLUSHES):
                flush.zero_()
            start.record()
            timed()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def _print(rows: list[Row], ceilings: Ceilings) -> None:
    title = f"measured here: {ceilings.bandwidth / 1e9:,.0f} GB/s, {ceilings.peak / 1e12:,.1f} TFLOP/s in bf16"
    table = Table("op", "pass", "dropout", "engine", title=title)
    for column in ("us", "p20 - p80", "x torch", "bandwidth", "peak"):
        table.add_column(column, justify="right")
    torch_samples = {(r["op"], r["pass"], r["dropout"]): r["turns"] for r in rows if r["engine"] == "torch"}
    for r in rows:
        micro = {name: 1e6 * seconds for name, seconds in r["seconds"].items()}
        ratio = np.median(np.array(torch_samples[r["op"], r["pass"], r["dropout"]]) / np.array(r["turns"]))
        table.add_row(
            r["op"],
            r["pass"],
            f"{r['dropout']:g}",
            r["engine"],
            f"{micro['p50']:,.1f}",
            f"{micro['p20']:,.1f} - {micro['p80']:,.1f}",
            f"{ratio:.2f}",
            f"{r['bandwidth_share']:.0%}",
            "" if r["peak_share"] is None else f"{r['peak_share']:.0%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(guarded("bench.kernels", main))

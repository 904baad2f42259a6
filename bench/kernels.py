"""The GPU's ops against PyTorch's own, eager and compiled: seconds, and shares of what the card was found to reach.

    python -m bench.kernels --json bench/results/kernels-gpu.json

Inputs are those of a training step under bf16 autocast: branches are bf16, the residual stream, which layer norms read,
is float32. Every engine is credited with the FLOPs and bytes of our kernels (``kernels.checks.roofline``), so that
shares compare as seconds do, though another engine may recompute less and read more.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
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
from kernels.checks import roofline
from kernels.checks.cli import guarded, writable_file

DROPOUTS = (0.0, 0.2)
WITH_DROPOUT = ("attention", "add_dropout_layer_norm")
PASSES = {"forward": ("forward",), "backward": ("backward",), "both": ("forward", "backward")}
# Relative error, root mean square, of a result of this dtype against float64.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
SEED = 1337
WARM_UP = 5
FLUSH_BYTES = 2**29  # far more than any level-2 cache
FLUSHES = 8  # so that the GPU is busy until Python has queued what is timed, and no launch is waited for
COPY_BYTES = 2**29
MATMUL_SIZE = 8192

Row = dict[str, Any]
Side = Callable[..., Any]  # an op: inputs -> a tensor, or several
Prepare = Callable[[], Callable[[], object]]  # runs what is not timed, and returns what is


class WrongResultError(Exception):
    """An op is too far from float64."""


class Case(NamedTuple):
    """An op of ``kernels.ops`` with its dropout, its inputs and the gradients of its outputs."""

    op: str
    dropout: float
    inputs: tuple[Tensor, ...]
    d_outputs: tuple[Tensor, ...]


class Ceilings(NamedTuple):
    """What this card was measured to reach: bytes/s of a large copy, FLOP/s of a large bf16 matrix product."""

    bandwidth: float
    peak: float


def main(arguments: list[str] | None = None) -> int:
    """Check, time and print; returns 2 without a GPU, 1 where a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.partition("\n\n")[0])
    roofline.add_shape_arguments(parser)
    parser.add_argument(
        "--rounds", type=roofline.positive, default=50, help="calls of each that are timed (default: %(default)s)"
    )
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="where the result goes")
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


def cases(shape: roofline.Shape, device: torch.device) -> list[Case]:
    """Every op at ``shape``, those with dropout once for each of ``DROPOUTS``."""
    batch, time, heads, width = shape.batch, shape.time, shape.heads, shape.width
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach().requires_grad_() for tensor in tensors)

    qkv = draw(batch, time, 3, heads, width, dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
    d_out = draw(batch, time, heads, width, dtype=torch.bfloat16).transpose(1, 2)  # as the projection leaves it
    stream, d_stream = draw(2, batch, time, shape.channels)
    branch, d_branch = draw(2, batch, time, shape.channels, dtype=torch.bfloat16)
    weight, bias = draw(2, shape.channels)
    logits = draw(shape.rows, shape.vocab, dtype=torch.bfloat16)
    targets = torch.randint(shape.vocab, (shape.rows,), generator=generator, device=device)
    joint = (stream, branch, weight, bias)
    found = []
    for p in DROPOUTS:
        found.append(Case("attention", p, leaves(*qkv), (d_out,)))
        found.append(Case("add_dropout_layer_norm", p, leaves(*joint), (d_stream, d_branch)))
    found.append(Case("layer_norm", 0.0, leaves(stream, weight, bias), (d_stream,)))
    found.append(Case("cross_entropy", 0.0, (*leaves(logits), targets), (torch.ones((), device=device),)))
    return found


def sides(case: Case) -> dict[str, Side]:
    """By engine: our op, PyTorch's own functions, and those compiled. Dropout draws a new seed each time."""

    def plain(*inputs: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the peer to beat; other ops do not look at it
            return _side(reference, case)(*inputs)

    compiled: Side = torch.compile(plain, dynamic=False)
    return {"charformer": _side(ops, case), "torch": plain, "torch-compile": compiled}


def check(case: Case) -> float:
    """The largest relative error (root mean square) of our op's results and gradients against float64.

    Raises WrongResultError for one beyond ``TOLERANCES``. With dropout, both drop what one seed drops.
    """
    seed = torch.tensor([SEED], device=case.inputs[0].device)
    exact = tuple(x.detach().double().requires_grad_() if x.is_floating_point() else x for x in case.inputs)
    wanted = _results(_side(reference, case, seed), exact, case.d_outputs)
    found = _results(_side(ops, case, seed), case.inputs, case.d_outputs)
    worst = 0.0
    for number, (value, truth) in enumerate(zip(found, wanted, strict=True)):
        error = float((value.double() - truth).norm() / truth.norm())
        if not error <= TOLERANCES[value.dtype]:  # so that NaN fails as well
            raise WrongResultError(f"{case.op}, dropout {case.dropout}: result {number} is off by {error:.1e}")
        worst = max(worst, error)
    return worst


def prepared(case: Case, side: Side, direction: str) -> Prepare:
    """What the timer calls for one of ``PASSES``; a backward pass gets a graph of its own each time."""
    leaves = [x for x in case.inputs if x.requires_grad]

    def forward() -> tuple[Tensor, ...]:
        return _outputs(side, case.inputs)

    def backward(outputs: tuple[Tensor, ...]) -> object:
        return torch.autograd.grad(outputs, leaves, case.d_outputs)

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
    """One row of the result; ``samples`` are seconds."""
    work = roofline.work(shape)
    parts = [work[case.op, part] for part in PASSES[direction]]
    moved, flops = sum(part.fused_bytes for part in parts), sum(part.flops for part in parts)
    median = float(np.median(samples))
    return results.row(
        engine=engine,
        op=case.op,
        dropout=case.dropout,
        precision=shape.dtype,
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
    everything = cases(shape, torch.device("cuda"))
    errors = [check(case) for case in everything]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    ceilings = _ceilings(rounds, flush)
    rows = []
    for case, error in track(list(zip(everything, errors, strict=True)), "timing", console=Console(stderr=True)):
        engines = sides(case)
        for direction in PASSES:
            runs = {engine: prepared(case, side, direction) for engine, side in engines.items()}
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
    """Seconds of the GPU's time for each run, in turn, with a cold level-2 cache."""
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


def _side(module: ModuleType, case: Case, seed: Tensor | None = None) -> Side:
    """The case's op in ``kernels.ops``, or in ``kernels.reference``, where an op without a seed is PyTorch's own."""
    op: Side = getattr(module, case.op)
    return partial(op, dropout_p=case.dropout, seed=seed) if case.op in WITH_DROPOUT else op


def _outputs(side: Side, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    outputs = side(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _results(side: Side, inputs: tuple[Tensor, ...], d_outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and gradients."""
    outputs = _outputs(side, inputs)
    d_outputs = tuple(d_output.to(output.dtype) for d_output, output in zip(d_outputs, outputs, strict=True))
    leaves = [x for x in inputs if x.requires_grad]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, leaves, d_outputs)]


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

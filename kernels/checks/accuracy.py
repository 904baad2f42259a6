"""Measure each kernel's error against float64, beside plain PyTorch's: ``python -m kernels.checks.accuracy``.

On a GPU the compiled kernels are measured, elsewhere the same kernels in Triton's interpreter; PyTorch runs in the same
dtype. A result passes if its largest error, relative to the largest exact value, is within its dtype's tolerance, and
its root mean square error is at most twice that of plain PyTorch, or about one rounding where that is more. New memory
is filled with NaN while a kernel runs, so that unwritten parts of a result show, and a second run must give the same
bits. Cases are spread over processes: one that fails or crashes does not hide the others.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from kernels import backend
from kernels.checks.cases import SEED, Case, cases, make_inputs, op, plain_op, run
from kernels.checks.cli import guarded, positive, writable_file, write_json
from kernels.checks.workers import Failed, FatalError, run_each

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Root mean square errors that pass whatever PyTorch's are: about one rounding, and a few in float32, since a row's
# log-sum-exp is kept in one number.
ROUNDING = {torch.float32: 5e-7, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
KERNELS = "triton"  # the backend that is measured
GPU_PROCESSES = 4  # each holds a CUDA context of its own, half a gigabyte


def measure(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each result and each gradient of the op: its error, and plain PyTorch's.

    Raises RuntimeError if a second run of the kernel gives different bits.
    """
    inputs = make_inputs(case, device)
    seed = torch.tensor([SEED], device=device)
    exact = run(plain_op(case, seed), case, {name: _as_double(x) for name, x in inputs.items()})
    eager = run(plain_op(case, seed), case, inputs)
    with backend.force(KERNELS), unwritten_is_nan():
        found, again = (run(op(case, seed), case, inputs) for _ in range(2))
    for name, value in found.items():
        if not torch.equal(value.nan_to_num(), again[name].nan_to_num()):
            raise RuntimeError(f"{case} {name}: a second run gives other bits")
    largest = max(float(value.abs().max()) for value in exact.values()) or 1.0
    rows = []
    for name, value in found.items():
        errors = {
            "error": _error(value, exact[name], torch.inf, largest),
            "rms_error": _error(value, exact[name], 2, largest),
            "pytorch_rms_error": _error(eager[name], exact[name], 2, largest),
        }
        about = {"op": case.op, "case": str(case), "dtype": str(case.dtype).removeprefix("torch.")}
        rows.append(about | {"result": name, "result_dtype": str(value.dtype).removeprefix("torch.")} | errors)
    return rows


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fill new floating-point tensors with NaN, so that unwritten elements show."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warned)
        settings.fill_uninitialized_memory = before[1]


def violation(row: dict[str, Any]) -> str | None:
    """Return what is wrong with a row; None if nothing is. NaN is always wrong."""
    dtype = getattr(torch, row["dtype"])
    rms_limit = max(2 * row["pytorch_rms_error"], ROUNDING[dtype])
    if row["error"] <= TOLERANCE[dtype] and row["rms_error"] <= rms_limit:
        return None
    limits = f"at most {TOLERANCE[dtype]:.1e} and {rms_limit:.1e}"
    return f"{row['case']} {row['result']}: error {row['error']:.1e}, root mean square {row['rms_error']:.1e}; {limits}"


def _as_double(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x


def _error(value: Tensor, exact: Tensor, order: float, largest: float) -> float:
    """Return the norm of the difference over the exact value's, or over the op's largest number where that is 0."""
    scale = torch.linalg.vector_norm(exact, order)
    if not scale:
        scale = torch.linalg.vector_norm(torch.full_like(exact, largest), order)
    return float(torch.linalg.vector_norm(value.double() - exact, order) / scale)


def _table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the worst errors of each op, dtype and result, beside plain PyTorch's worst."""
    table = Table()
    for column in ("op", "dtype", "result"):
        table.add_column(column)
    for column in ("largest error", "root mean square", "PyTorch's"):
        table.add_column(column, justify="right")
    for key in dict.fromkeys((row["op"], row["dtype"], row["result"]) for row in rows):
        group = [row for row in rows if (row["op"], row["dtype"], row["result"]) == key]
        worst = [f"{max(row[name] for row in group):.1e}" for name in ("error", "rms_error", "pytorch_rms_error")]
        table.add_row(*key, *worst, style="red" if any(map(violation, group)) else None)
    return table


def _missing(device: torch.device) -> str | None:
    """Return why kernels cannot run on ``device``, or be interpreted on the CPU; None if they can."""
    if device.type == "cpu":
        return None if backend.TRITON else backend.missing(device)
    reason = backend.missing(device) if torch.cuda.is_available() else "PyTorch finds no CUDA GPU here"
    return f"{reason}; --device cpu interprets the kernels" if reason else None


def main(arguments: list[str] | None = None) -> int:
    """Measure the kernels and print their errors; return the exit code, 1 if a kernel does not pass."""
    parser = argparse.ArgumentParser(prog="python -m kernels.checks.accuracy", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where; cpu is Triton's interpreter (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one a core, or 4 on a GPU)")
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write every figure to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    options.jobs = options.jobs or (GPU_PROCESSES if device.type == "cuda" else os.cpu_count() or 1)
    os.environ["TRITON_INTERPRET"] = "1" if device.type == "cpu" else "0"  # Triton is not imported yet
    if reason := _missing(device):
        print(f"kernels.checks.accuracy: {reason}", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    everything = list(cases())
    measured = run_each(partial(measure_apart, device=options.device), everything, options.jobs)
    rows: list[dict[str, Any]] = []
    violations = []
    for case, found in track(measured, "measuring", len(everything), console=console):
        if isinstance(found, Failed):
            violations.append(f"{case}: {found.reason}")
        else:
            rows += found
    violations += filter(None, map(violation, rows))
    order = {str(case): number for number, case in enumerate(everything)}
    rows.sort(key=lambda row: order[row["case"]])
    where = torch.cuda.get_device_name() if device.type == "cuda" else "Triton's interpreter"
    if options.json:
        write_json(options.json, where, rows)
    Console().print(_table(rows))
    print(*violations, sep="\n", end="\n" if violations else "", file=sys.stderr)
    print(f"{len(rows)} results on {where}, {len(violations)} violations")
    return bool(violations)


def measure_apart(case: Case, device: str) -> list[dict[str, Any]]:
    """Measure the case in a worker process. Raises FatalError if the GPU accepts no more work."""
    torch.backends.cuda.matmul.allow_tf32 = False  # so that plain PyTorch's float32 is float32
    try:
        return measure(case, torch.device(device))
    except Exception as error:
        if device == "cuda":
            try:
                torch.cuda.synchronize()
            except Exception:
                raise FatalError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
        raise


if __name__ == "__main__":
    sys.exit(guarded("kernels.checks.accuracy", main))

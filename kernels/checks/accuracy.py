"""How far each kernel is from float64, beside plain PyTorch in the same dtype: ``python -m kernels.checks.accuracy``.

On a GPU the kernels themselves are measured, elsewhere what Triton's interpreter makes of them. A result passes whose
largest error, over the largest exact value, is within its dtype's tolerance, and whose root mean square error is at
most twice that of plain PyTorch, or a rounding or so where that is more.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from kernels import backend, ops, reference
from kernels.checks.cli import guarded, writable_file, write_json

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Root mean square errors that pass whatever PyTorch's are: about one rounding, and in float32 a few, since a row's
# log-sum-exp is kept in one number.
ROUNDING = {torch.float32: 5e-7, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
SEED = 2**40 + 7


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        time: positions, or rows that begin at no multiple of a tile.
        width: of a head, a row or a vocabulary.
        layout: of attention's inputs: "plain", each on its own, "packed", views of a (B, T, 3, H, D), or "odd", rows
            that begin at no multiple of the alignment.
    """

    op: str
    dtype: torch.dtype
    time: int
    width: int
    dropout_p: float = 0.0
    layout: str = "plain"

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.op}-{name}-{self.time}x{self.width}-{self.dropout_p}-{self.layout}"


def cases() -> Iterator[Case]:
    """Ragged and whole tiles, widths that are and are not powers of two, with and without dropout, in each dtype."""
    for dtype in TOLERANCE:
        layouts = itertools.cycle(("plain", "packed", "odd"))
        for time in (1, 33, 64, 100):
            for width in (16, 20, 32, 48, 64, 128):
                yield Case("attention", dtype, time, width, 0.0, next(layouts))
                yield Case("attention", dtype, time, width, 0.2, next(layouts))
            next(layouts)  # so that each width meets each layout
        for width in (16, 35, 128, 384, 1025):
            yield Case("layer_norm", dtype, 7, width)
            yield Case("add_dropout_layer_norm", dtype, 7, width)
            yield Case("add_dropout_layer_norm", dtype, 7, width, 0.2)
        for time, width in ((1, 1), (33, 65), (19, 87), (16, 96), (5, 5000)):
            yield Case("cross_entropy", dtype, time, width)


def measure(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """A row for each result and each gradient of the op: its error, and plain PyTorch's."""
    names, inputs = _inputs(case, device)
    kernel, plain = _functions(case, device)
    exact = _results(plain, [x.double() if x.is_floating_point() else x for x in inputs], names, case.dtype)
    eager = _results(plain, inputs, names, case.dtype)
    with backend.force("triton"):
        found = _results(kernel, inputs, names, case.dtype)
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


def complaint(row: dict[str, Any]) -> str | None:
    """What is wrong with a row; None if nothing is. NaN is always wrong."""
    dtype = getattr(torch, row["dtype"])
    rms_limit = max(2 * row["pytorch_rms_error"], ROUNDING[dtype])
    if row["error"] <= TOLERANCE[dtype] and row["rms_error"] <= rms_limit:
        return None
    limits = f"at most {TOLERANCE[dtype]:.1e} and {rms_limit:.1e}"
    return f"{row['case']} {row['result']}: error {row['error']:.1e}, root mean square {row['rms_error']:.1e}; {limits}"


def _inputs(case: Case, device: torch.device) -> tuple[list[str], list[Tensor]]:
    """The op's tensors and their names; as in training, the stream is float32 whatever the branch is."""
    generator = torch.Generator().manual_seed(case.time * 1000 + case.width)

    def draw(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    if case.op == "attention":
        if case.layout == "plain":
            return ["q", "k", "v"], [draw(2, 2, case.time, case.width) for _ in range(3)]
        packed = draw(2, case.time, 3, 2, case.width + (case.layout == "odd"))
        return ["q", "k", "v"], list(packed[..., : case.width].permute(2, 0, 3, 1, 4))
    if case.op == "cross_entropy":
        targets = torch.randint(case.width, (case.time,), generator=generator).to(device)
        targets[1::5] = -100
        return ["logits"], [4 * draw(case.time, case.width), targets]
    weights = [draw(case.width, dtype=torch.float32) for _ in range(2)]
    if case.op == "layer_norm":
        return ["x", "weight", "bias"], [draw(3, case.time, case.width), *weights]
    residual = draw(3, case.time, case.width, dtype=torch.float32)
    return ["residual", "x", "weight", "bias"], [residual, draw(3, case.time, case.width), *weights]


def _functions(case: Case, device: torch.device) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The op and the same in plain PyTorch, dtype by dtype as a user would write it, with the seed's own mask."""
    p, seed = case.dropout_p, torch.tensor([SEED], device=device)

    def mask(x: Tensor) -> Tensor:
        if not p:
            return torch.ones_like(x)
        return reference.keep_mask(x.numel() // x.shape[-1], x.shape[-1], p, seed).view_as(x).to(x.dtype) / (1 - p)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(2, 3) * case.width**-0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        weights = scores.softmax(-1)
        return (weights * mask(weights)) @ v

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype))

    def joint(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x * mask(x)
        return total, F.layer_norm(total, weight.shape, weight, bias).to(x.dtype)

    functions: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "attention": (lambda q, k, v: ops.attention(q, k, v, p, seed), attention),
        "layer_norm": (ops.layer_norm, layer_norm),
        "add_dropout_layer_norm": (lambda r, x, w, b: ops.add_dropout_layer_norm(r, x, w, b, p, seed), joint),
        "cross_entropy": (ops.cross_entropy, lambda logits, targets: F.cross_entropy(logits, targets)),
    }
    return functions[case.op]


def _results(
    function: Callable[..., Any], inputs: list[Tensor], names: list[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The function's results, and the gradients of its inputs for gradients that are the same in every dtype."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(y.shape, generator=generator).to(dtype).to(y) for y in outputs]
    torch.autograd.backward(outputs, gradients)
    found = {f"out{number}": y.detach() for number, y in enumerate(outputs)}
    return found | {f"d_{name}": leaf.grad for name, leaf in zip(names, leaves, strict=False) if leaf.grad is not None}


def _error(value: Tensor, exact: Tensor, order: float, largest: float) -> float:
    """The norm of the difference over that of the exact value; where that is all zero, over the op's largest number."""
    scale = torch.linalg.vector_norm(exact, order)
    if not scale:
        scale = torch.linalg.vector_norm(torch.full_like(exact, largest), order)
    return float(torch.linalg.vector_norm(value.double() - exact, order) / scale)


def _table(rows: list[dict[str, Any]]) -> Table:
    """The worst errors of each op, dtype and result, beside plain PyTorch's worst."""
    table = Table()
    for column in ("op", "dtype", "result"):
        table.add_column(column)
    for column in ("largest error", "root mean square", "PyTorch's"):
        table.add_column(column, justify="right")
    for key in dict.fromkeys((row["op"], row["dtype"], row["result"]) for row in rows):
        group = [row for row in rows if (row["op"], row["dtype"], row["result"]) == key]
        worst = [f"{max(row[name] for row in group):.1e}" for name in ("error", "rms_error", "pytorch_rms_error")]
        table.add_row(*key, *worst, style="red" if any(map(complaint, group)) else None)
    return table


def _missing(device: torch.device) -> str | None:
    """What stands in the way of running kernels on ``device``, or of interpreting them on the CPU."""
    if device.type == "cpu":
        return None if backend.TRITON else backend.missing(device)
    reason = backend.missing(device) if torch.cuda.is_available() else "PyTorch finds no CUDA GPU here"
    return f"{reason}; --device cpu interprets the kernels" if reason else None


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return 1 if a kernel does not pass."""
    parser = argparse.ArgumentParser(prog="python -m kernels.checks.accuracy", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where; cpu is Triton's interpreter (default: %(default)s)",
    )
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write every figure there")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    os.environ["TRITON_INTERPRET"] = "1" if device.type == "cpu" else "0"  # Triton is not imported yet
    if reason := _missing(device):
        print(f"kernels.checks.accuracy: {reason}", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False  # plain PyTorch's float32 is to be float32
    console = Console(stderr=True)
    everything = list(cases())
    rows = [row for case in track(everything, "measuring", console=console) for row in measure(case, device)]
    where = torch.cuda.get_device_name() if device.type == "cuda" else "Triton's interpreter"
    if options.json:
        write_json(options.json, where, rows)
    Console().print(_table(rows))
    complaints = list(filter(None, map(complaint, rows)))
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    print(f"{len(rows)} results on {where}, {len(complaints)} complaints")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(guarded("kernels.checks.accuracy", main))

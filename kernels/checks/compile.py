"""Compile every kernel for a card that need not be there: ``python -m kernels.checks.compile --card sm_86``.

The launchers run on tensors without memory and say what they would launch, so that what is compiled here is what a GPU
would get. Registers and stack are read with cuobjdump, instructions with nvdisasm, both of which come with Triton. The
gate: no kernel spills registers, none takes more shared memory than a block may have, and an aligned 16-bit one
multiplies matrices on tensor cores, or else loads 128 bits at a time.

Without ``TRITON_INTERPRET``: the interpreter replaces the compiler.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.backend import TRITON

if not TRITON:
    print("kernels.checks.compile needs Triton, which comes for Linux on x86-64", file=sys.stderr)
    raise SystemExit(2)

import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.checks.cli import guarded, writable_file, write_csv
from kernels.gpu import attention, cross_entropy, layer_norm
from kernels.gpu.launch import Launch, recorded

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}


class Card(NamedTuple):
    """An architecture's limits (CUDA C++ Programming Guide, "Compute Capabilities")."""

    shared_per_block: int
    shared_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int


NORM_WIDTHS = (48, 128, 384, 768, 2048)
KIB = 1024
CARDS = {
    "sm_80": Card(163 * KIB, 164 * KIB, 64, 32),
    "sm_86": Card(99 * KIB, 100 * KIB, 48, 16),
    "sm_89": Card(99 * KIB, 100 * KIB, 48, 24),
    "sm_90": Card(227 * KIB, 228 * KIB, 64, 32),
    "sm_120": Card(99 * KIB, 100 * KIB, 48, 24),
}
REGISTERS_PER_SM = 65536
SHARED_RESERVED = 1 * KIB  # that the system takes of each block's


class Case(NamedTuple):
    """One call of an op, forward and backward, that makes the launchers choose one variant each."""

    op: str
    dtype: torch.dtype
    width: int  # of a head, a row or a vocabulary
    dropout_p: float
    aligned: bool

    def __str__(self) -> str:
        letter = {"attention": "D", "cross_entropy": "V"}.get(self.op, "C")
        dropout = " dropout" if self.dropout_p else ""
        return f"{DTYPES[self.dtype]} {letter}{self.width}{dropout}{'' if self.aligned else ' general'}"


def cases() -> list[Case]:
    """Every variant: head widths of each tile, whole and with a rest to mask, and rows of several lengths."""
    found = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for aligned in (True, False):
            for p in (0.0, 0.2):
                widths = (16, 32, 48, 64, 96, 128) if aligned else (16, 24, 32, 48, 64, 96, 128)
                found += [Case("attention", dtype, width, p, aligned) for width in widths]
                found += [Case("add_dropout_layer_norm", dtype, width, p, aligned) for width in NORM_WIDTHS]
            found += [Case("layer_norm", dtype, width, 0.0, aligned) for width in NORM_WIDTHS]
            found += [Case("cross_entropy", dtype, width, 0.0, aligned) for width in (16, 96, 256, 1024, 50304)]
    return found


def launches(case: Case, card: str) -> list[Launch]:
    """What the launchers of ``case``'s op would run on ``card``, forward and backward."""
    with recorded(card) as found:
        _CALLS[case.op](case)
    if any(launch.is_aligned != case.aligned for launch in found):
        raise RuntimeError(f"{case}: the launcher chose another variant")
    return found


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _seed(case: Case) -> Tensor | None:
    return _empty(1, dtype=torch.int64) if case.dropout_p else None


def _call_attention(case: Case) -> None:
    packed = _empty(2, 100, 3, 4, case.width + (not case.aligned), dtype=case.dtype)[..., : case.width]
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    out, lse = attention.forward(q, k, v, case.dropout_p, _seed(case))
    attention.backward(out, q, k, v, out, lse, case.dropout_p, _seed(case))


def _call_layer_norm(case: Case) -> None:
    channels = case.width - (not case.aligned)
    x, weight = _empty(100, channels, dtype=case.dtype), _empty(channels, dtype=case.dtype)
    _, y, mean, rstd = layer_norm.forward(x, None, weight, weight, 1e-5)
    layer_norm.backward(y, None, x, weight, mean, rstd, None)


def _call_add_dropout_layer_norm(case: Case) -> None:
    channels = case.width - (not case.aligned)
    x, residual, weight = _empty(100, channels, dtype=case.dtype), _empty(100, channels), _empty(channels)
    total, y, mean, rstd = layer_norm.forward(x, residual, weight, weight, 1e-5, case.dropout_p, _seed(case))
    assert total is not None
    for d_total in (total, None):  # nothing reads the last joint's sum
        layer_norm.backward(y, d_total, total, weight, mean, rstd, case.dtype, case.dropout_p, _seed(case))
    if case.dtype != torch.float32 and not case.dropout_p:  # sampling with 16-bit weights
        weight = weight.to(case.dtype)
        layer_norm.forward(x, x, weight, weight, 1e-5)


def _call_cross_entropy(case: Case) -> None:
    vocab = case.width - (not case.aligned)
    logits, targets = _empty(100, vocab, dtype=case.dtype), _empty(100, dtype=torch.int64)
    loss, lse, count = cross_entropy.forward(logits, targets, -100)
    cross_entropy.backward(loss, logits, targets, lse, count, -100)


_CALLS = {
    "attention": _call_attention,
    "layer_norm": _call_layer_norm,
    "add_dropout_layer_norm": _call_add_dropout_layer_norm,
    "cross_entropy": _call_cross_entropy,
}


def compile_case(case: Case, card: str) -> list[dict[str, Any]]:
    """A row for each kernel of ``case``: what it is, and the figures of ``compile_launch``."""
    return [
        {"op": case.op, "variant": _variant(case, launch)} | compile_launch(launch, card)
        for launch in launches(case, card)
    ]


def _variant(case: Case, launch: Launch) -> str:
    residual = launch.arguments.get("residual_ptr")
    if residual is not None and residual.dtype != torch.float32:
        return f"{case} 16-bit stream"
    is_last = launch.arguments.get("BRANCH") and launch.arguments["d_total_ptr"] is None
    return f"{case} last" if is_last else str(case)


def compile_launch(launch: Launch, card: str) -> dict[str, Any]:
    """Compile one kernel and read what it uses."""
    function = launch.kernel.aligned if launch.is_aligned else launch.kernel.general
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        value = launch.arguments[name]
        signature[name] = _triton_type(value, is_constant=function.params[index].is_constexpr)
        if signature[name] == "constexpr":
            constants[name] = value
        elif launch.is_aligned and name in launch.kernel.aligned_names:
            attributes[(index,)] = [["tt.divisibility", 16]]
    start = time.perf_counter()
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", int(card.removeprefix("sm_")), 32),
        options=launch.tile.options(),
    )
    seconds = time.perf_counter() - start
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    registers = int(_search(r"REG:(\d+)", usage))
    shared = compiled.metadata.shared
    blocks = blocks_per_sm(CARDS[card], registers, shared, launch.tile.num_warps)
    return {
        "kernel": launch.kernel.name,
        "card": card,
        "registers": registers,
        "stack": int(_search(r"STACK:(\d+)", usage)),
        "local_loads": _count(r"LDL", code),
        "local_stores": _count(r"STL", code),
        "shared": shared,
        "mma": _count(r"(?:HMMA|HGMMA)", code),
        "wide_loads": _count(r"(?:LDG|LDGSTS)\.[\w.]*128", code),
        "blocks_per_sm": blocks,
        "occupancy": round(blocks * launch.tile.num_warps / CARDS[card].warps_per_sm, 4),
        "compile_seconds": round(seconds, 2),
    }


def blocks_per_sm(card: Card, registers: int, shared: int, num_warps: int) -> int:
    """Blocks that one multiprocessor holds at a time; registers are given out by 256 a warp."""
    by_registers = REGISTERS_PER_SM // (-(-registers * 32 // 256) * 256 * num_warps)
    by_shared = card.shared_per_sm // (shared + SHARED_RESERVED)
    return min(by_registers, by_shared, card.warps_per_sm // num_warps, card.blocks_per_sm)


def complaints(row: dict[str, Any]) -> list[str]:
    """What the gate has against a kernel; nothing if it passes."""
    found = []
    if row["local_loads"] or row["local_stores"]:
        found.append(f"spills: {row['local_loads']} local loads, {row['local_stores']} local stores")
    if row["shared"] > CARDS[row["card"]].shared_per_block:
        found.append(f"{row['shared']} bytes of shared memory, {CARDS[row['card']].shared_per_block} at most")
    aligned_16_bits = row["variant"][:4] in ("fp16", "bf16") and "general" not in row["variant"]
    if aligned_16_bits and row["op"] == "attention" and not row["mma"]:
        found.append("no matrix instruction")
    # In a row of less than 256, a warp's 32 lanes have no eight elements each.
    is_short = (width := re.search(r" C(\d+)", row["variant"])) and int(width[1]) < 256
    if aligned_16_bits and row["op"] != "attention" and not is_short and not row["wide_loads"]:
        found.append("no 128-bit load")
    return found


def _triton_type(value: Any, is_constant: bool) -> str:
    if is_constant or value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{DTYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text!r}"
    return found[1]


def _count(opcode: str, code: str) -> int:
    return len(re.findall(rf"\b{opcode}\b", code))


def _table(rows: list[dict[str, Any]], card: str) -> Table:
    table = Table(title=f"{card}, Triton {triton.__version__}")
    for column in ("op", "kernel", "variant"):
        table.add_column(column)
    for column in ("registers", "stack", "spills", "shared", "blocks", "occupancy", "mma", "wide loads", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = [row["registers"], row["stack"], row["local_loads"] + row["local_stores"], row["shared"]]
        figures += [row["blocks_per_sm"], f"{row['occupancy']:.0%}", row["mma"], row["wide_loads"]]
        texts = map(str, [row["op"], row["kernel"], row["variant"], *figures, row["compile_seconds"]])
        table.add_row(*texts, style="red" if complaints(row) else None)
    return table


def _rows(card: str, console: Console) -> Iterator[dict[str, Any]]:
    # Processes, since the compiler holds the interpreter's lock; spawned, since torch has threads.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        everything = cases()
        done = pool.map(compile_case, everything, [card] * len(everything))
        for rows in track(done, f"compiling for {card}", len(everything), console=console):
            yield from rows


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and return 1 if a kernel does not pass."""
    parser = argparse.ArgumentParser(prog="python -m kernels.checks.compile", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--card", choices=[*CARDS, "all"], default="sm_86", help="(default: %(default)s)")
    parser.add_argument("--csv", type=writable_file, metavar="FILE", help="write every figure there, a row a kernel")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("kernels.checks.compile compiles: unset TRITON_INTERPRET, under which Triton interprets", file=sys.stderr)
        return 2
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # so that compile times are those of compiling
        for card in CARDS if options.card == "all" else [options.card]:
            rows = list(_rows(card, Console(stderr=True)))
            found += rows
    if options.csv:
        write_csv(options.csv, found)
    for card in dict.fromkeys(row["card"] for row in found):
        Console().print(_table([row for row in found if row["card"] == card], card))
    failures = [(row, complaint) for row in found for complaint in complaints(row)]
    for row, complaint in failures:
        print(f"{row['card']} {row['op']} {row['kernel']} {row['variant']}: {complaint}", file=sys.stderr)
    print(f"{len(found)} kernels, {len(failures)} complaints")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(guarded("kernels.checks.compile", main))

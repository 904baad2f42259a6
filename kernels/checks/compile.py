"""Compile every kernel for a card that need not be present: ``python -m kernels.checks.compile --card sm_86``.

The launchers run on CPU tensors and record what they would launch, so the kernels compiled here are those that a GPU
would run. Registers and stack are read with cuobjdump, instructions with nvdisasm, both of which come with Triton. The
gate: no kernel spills registers, none takes more shared memory than a block may have, and an aligned 16-bit one
multiplies matrices on tensor cores, or else loads 128 bits at a time.

``--cache DIR`` stores the compiled kernels in a cache of Triton's, so that a program with ``TRITON_CACHE_DIR=DIR``, on
a machine with such a card and the same Triton, compiles nothing.

``TRITON_INTERPRET`` must not be 1, since the interpreter replaces the compiler.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels.backend import TRITON

if not TRITON:
    print("kernels.checks.compile needs Triton, which comes for Linux on x86-64", file=sys.stderr)
    raise SystemExit(2)

import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels.checks.cards import ARCHITECTURES, Architecture
from kernels.checks.cases import DTYPE_NAMES, SEED, Case, cases, make_inputs, op, run
from kernels.checks.cli import guarded, positive, writable_file, write_csv
from kernels.checks.workers import Failed, run_each
from kernels.gpu.launch import Launch, recorded

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
REGISTERS_PER_SM = 65536
SHARED_RESERVED = 1024  # bytes that the system takes of each block's


def distinct(everything: Iterable[Case]) -> list[Case]:
    """Return the cases without those whose kernels another case also has."""
    return list({(case.op, _label(case)): case for case in everything}.values())


def launches(case: Case, card: str) -> list[Launch]:
    """Return the launches that ``case``'s op would make on ``card``, forward and backward."""
    cpu = torch.device("cpu")
    with recorded(card) as found:
        run(op(case, torch.tensor([SEED])), case, make_inputs(case, cpu))
    if any(launch.is_aligned != case.aligned for launch in found):
        raise RuntimeError(f"{case}: the launcher chose another variant")
    # The forward pass is left out: it does not know that nothing will read its sum.
    return found[1:] if case.variant == "last" else found


def compile_case(case: Case, card: str) -> list[dict[str, Any]]:
    """Return a row for each kernel of ``case``: its op, its variant and the figures of ``compile_launch``."""
    return [{"op": case.op, "variant": _label(case)} | compile_launch(launch, card) for launch in launches(case, card)]


def fill_cache(card: str, folder: Path, jobs: int, everything: Iterable[Case] | None = None) -> dict[str, Any]:
    """Compile the kernels for a card that Triton's cache ``folder`` lacks, in ``jobs`` processes.

    Args:
        everything: the cases that will run there; all cases of the checks if None.

    Returns:
        The number of kernels found ("hits") and compiled ("misses"), the failures, and the seconds that it took.
    """
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    start = time.perf_counter()
    hits = misses = 0
    failed = []
    wanted = distinct(everything if everything is not None else cases())
    for case, found in run_each(partial(_is_cached, card=card), wanted, jobs):
        if isinstance(found, Failed):
            failed.append(f"{case}: {found.reason}")
        else:
            hits += sum(found)
            misses += len(found) - sum(found)
    return {"hits": hits, "misses": misses, "failed": failed, "seconds": round(time.perf_counter() - start, 1)}


def _is_cached(case: Case, card: str) -> list[bool]:
    """Compile the kernels of ``case``; return for each whether it was in the cache."""
    return [_compile(launch, card)[1] for launch in launches(case, card)]


def _label(case: Case) -> str:
    letter = {"attention": "D", "rotary": "D", "cross_entropy": "V"}.get(case.op, "C")
    words = [DTYPE_NAMES[case.dtype], f"{letter}{case.width}"]
    words += ["dropout"] * bool(case.dropout_p) + ["general"] * (not case.aligned)
    words += {"last": ["last"], "narrow": ["16-bit", "stream"]}.get(case.variant, [])
    return " ".join(words)


class _Target:
    """A stand-in for the driver that Triton's JIT asks before a launch, for a card that need not be present."""

    def __init__(self, card: str) -> None:
        self._architecture = int(card.removeprefix("sm_"))

    def get_current_device(self) -> int:
        """Return a number for each kind of card, since Triton keeps the kernels of each device apart."""
        return self._architecture

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)


def _compile(launch: Launch, card: str) -> tuple[Any, bool, float]:
    """Return the compiled kernel of a launch, whether it was in Triton's cache, and the seconds that it took."""
    function = launch.kernel.aligned if launch.is_aligned else launch.kernel.general
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    driver.set_active(_Target(card))
    start = time.perf_counter()
    compiled = function.run(grid=(1,), warmup=True, **launch.arguments, **launch.tile.options())
    return compiled, all(hits), time.perf_counter() - start


def compile_launch(launch: Launch, card: str) -> dict[str, Any]:
    """Compile one kernel and return the resources that it uses."""
    compiled, _, seconds = _compile(launch, card)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    registers = int(_search(r"REG:(\d+)", usage))
    shared = compiled.metadata.shared
    blocks = blocks_per_sm(ARCHITECTURES[card], registers, shared, launch.tile.num_warps)
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
        "occupancy": round(blocks * launch.tile.num_warps / ARCHITECTURES[card].warps_per_sm, 4),
        "compile_seconds": round(seconds, 2),
    }


def blocks_per_sm(architecture: Architecture, registers: int, shared: int, num_warps: int) -> int:
    """Return how many blocks a multiprocessor holds at a time; registers are allocated in units of 256 per warp."""
    by_registers = REGISTERS_PER_SM // (-(-registers * 32 // 256) * 256 * num_warps)
    by_shared = architecture.shared_per_sm // (shared + SHARED_RESERVED)
    return min(by_registers, by_shared, architecture.warps_per_sm // num_warps, architecture.blocks_per_sm)


def violations(row: dict[str, Any]) -> list[str]:
    """Return the rules of the gate that a kernel breaks; none if it passes."""
    found = []
    if row["local_loads"] or row["local_stores"]:
        found.append(f"spills: {row['local_loads']} local loads, {row['local_stores']} local stores")
    if row["shared"] > ARCHITECTURES[row["card"]].shared_per_block:
        found.append(f"{row['shared']} bytes of shared memory, {ARCHITECTURES[row['card']].shared_per_block} at most")
    aligned_16_bits = row["variant"][:4] in ("fp16", "bf16") and "general" not in row["variant"]
    if aligned_16_bits and row["op"] == "attention" and not row["mma"]:
        found.append("no matrix instruction")
    # A row of fewer than 256 elements has fewer than eight for each of a warp's 32 lanes.
    is_short = (width := re.search(r" C(\d+)", row["variant"])) and int(width[1]) < 256
    if aligned_16_bits and row["op"] != "attention" and not is_short and not row["wide_loads"]:
        found.append("no 128-bit load")
    return found


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
        table.add_row(*texts, style="red" if violations(row) else None)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Compile the kernels and print their figures; return the exit code, 1 if a kernel does not pass."""
    parser = argparse.ArgumentParser(prog="python -m kernels.checks.compile", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--card", choices=[*ARCHITECTURES, "all"], default="sm_86", help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="leave the compiled kernels in this Triton cache")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), metavar="N", help="(default: one a core)")
    parser.add_argument(
        "--csv", type=writable_file, metavar="FILE", help="write every figure to this file, one row for each kernel"
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("kernels.checks.compile compiles: unset TRITON_INTERPRET, under which Triton interprets", file=sys.stderr)
        return 2
    cards = list(ARCHITECTURES) if options.card == "all" else [options.card]
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
        for card in cards:
            filled = fill_cache(card, options.cache, options.jobs)
            print(f"{card}: {filled['hits']} kernels were in {options.cache}, {filled['misses']} compiled into it")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache or empty)  # an empty one gives compile times
        found, failures = _check(cards, options.jobs)
    if options.csv:
        write_csv(options.csv, found)
    for card in dict.fromkeys(row["card"] for row in found):
        Console().print(_table([row for row in found if row["card"] == card], card))
    for row in found:
        where = f"{row['card']} {row['op']} {row['kernel']} {row['variant']}"
        failures += [f"{where}: {violation}" for violation in violations(row)]
    print(*failures, sep="\n", end="\n" if failures else "", file=sys.stderr)
    print(f"{len(found)} kernels, {len(failures)} violations")
    return bool(failures)


def _check(cards: list[str], jobs: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each kernel of each card, in the order of the cases, and the failures to compile."""
    rows, failures = [], []
    everything = distinct(cases())
    for card in cards:
        by_case = {}
        done = run_each(partial(compile_case, card=card), everything, jobs)
        for case, found in track(done, f"compiling for {card}", len(everything), console=Console(stderr=True)):
            if isinstance(found, Failed):
                failures.append(f"{card} {case}: {found.reason}")
            else:
                by_case[case] = found
        rows += [row for case in everything for row in by_case.get(case, [])]
    return rows, failures


if __name__ == "__main__":
    sys.exit(guarded("kernels.checks.compile", main))

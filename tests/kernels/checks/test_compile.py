"""Check the compiler's output for every kernel and a card that is not present, and that each gate can fail."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.backend import OPS

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
COLUMNS = {
    *(
        "triton",
        "torch",
        "op",
        "kernel",
        "variant",
        "card",
        "registers",
        "stack",
        "local_loads",
        "local_stores",
        "shared",
        "mma",
    ),
    *("wide_loads", "blocks_per_sm", "occupancy", "compile_seconds"),
}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env=COMPILING | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.gate
def test_every_kernel_passes_the_gates_of_sm_86(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = python("-m", "kernels.checks.compile", "--card", "sm_86", "--csv", str(tmp_path / "aot.csv"))
    assert process.returncode == 0, process.stderr
    with open(tmp_path / "aot.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with capfd.disabled():
        print(f"\nTriton {rows[0]['triton']}, {process.stdout.splitlines()[-1]}")
    assert all(row.keys() == COLUMNS for row in rows)
    assert {row["op"] for row in rows} == set(OPS)
    attention = {row["kernel"] for row in rows if row["op"] == "attention"}
    assert attention == {"forward_kernel", "dq_kernel", "dkv_kernel"}
    assert {row["variant"] for row in rows if row["op"] == "attention"} >= {"bf16 D64 dropout", "fp32 D48 general"}
    assert len(rows) == len({(row["op"], row["kernel"], row["variant"]) for row in rows}) > 300
    assert all(0 < float(row["occupancy"]) <= 1 for row in rows)


FAILING = """
import dataclasses, json, sys
import torch
from kernels.checks.cases import Case
from kernels.checks.compile import compile_launch, violations, launches
from kernels.gpu.block_sizes import Tile

attention = launches(Case("attention", torch.bfloat16, 100, 64, 0.2, "packed"), "sm_86")[0]
norm = launches(Case("layer_norm", torch.bfloat16, 7, 384, variant="narrow"), "sm_86")[0]
changed = {
    "right": attention,
    "spilling": dataclasses.replace(attention, arguments=attention.arguments | {"ROWS": 128, "COLUMNS": 128},
                                    tile=Tile(128, 128, 4, 1)),
    "too much shared memory": dataclasses.replace(attention, arguments=attention.arguments | {"COLUMNS": 256},
                                                  tile=Tile(64, 256, 8, 3)),
    "misaligned": dataclasses.replace(norm, is_aligned=False),
}
found = {}
for name, launch in changed.items():
    row = {"op": "layer_norm" if launch.kernel is norm.kernel else "attention", "variant": "bf16"}
    found[name] = violations(row | compile_launch(launch, "sm_86"))
plain = launches(Case("attention", torch.float32, 100, 32), "sm_86")[0]  # IEEE products, no tensor cores
row = {"op": "attention", "variant": "bf16"} | compile_launch(plain, "sm_86")
found["no matrix instruction"] = violations(row)
json.dump(found, sys.stdout)
"""


def test_each_gate_can_fail(tmp_path: Path) -> None:
    process = python("-c", FAILING, TRITON_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stderr
    found: dict[str, list[str]] = json.loads(process.stdout)
    assert found["right"] == []
    assert found["spilling"][0].startswith("spills")
    assert "shared memory" in " ".join(found["too much shared memory"])
    assert found["misaligned"] == ["no 128-bit load"]
    assert found["no matrix instruction"] == ["no matrix instruction"]


SPILLING = """
import sys
import torch
from kernels.checks import compile
from kernels.checks.cases import Case
from kernels.gpu import block_sizes

block_sizes.ATTENTION["forward", 64, 2] = block_sizes.Tile(128, 128, 4, 1)
compile.cases = lambda: [Case("attention", torch.bfloat16, 100, 64)]
if __name__ == "__main__":
    sys.exit(compile.main(["--card", "sm_86", "--jobs", "1"]))
"""


def test_the_command_fails_with_a_kernel_that_spills(tmp_path: Path) -> None:
    (tmp_path / "spilling.py").write_text(SPILLING, "utf-8")
    process = python(str(tmp_path / "spilling.py"))
    assert process.returncode == 1
    assert "\nsm_86 attention forward_kernel bf16 D64: spills" in process.stderr


def test_under_the_interpreter_it_says_what_to_do() -> None:
    process = python("-m", "kernels.checks.compile", TRITON_INTERPRET="1")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "unset TRITON_INTERPRET" in process.stderr


@pytest.mark.parametrize(
    ("program", "flag", "path"), [("compile", "--csv", "missing/aot.csv"), ("accuracy", "--json", ".")]
)
def test_a_result_file_that_cannot_be_written_is_refused_at_once(
    program: str, flag: str, path: str, tmp_path: Path
) -> None:
    process = python("-m", f"kernels.checks.{program}", flag, str(tmp_path / path))
    assert process.returncode == 2
    assert "cannot be written" in process.stderr


def test_a_card_that_is_unknown() -> None:
    assert python("-m", "kernels.checks.compile", "--card", "sm_75").returncode == 2


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "expected"),
    # By hand for sm_86: 65,536 registers, 100 KiB of shared memory, 48 warps and 16 blocks a multiprocessor.
    [(168, 16384, 4, 3), (255, 0, 4, 2), (32, 0, 1, 16), (32, 0, 8, 6), (32, 50 * 1024, 4, 1), (128, 24 * 1024, 4, 4)],
)
def test_blocks_per_multiprocessor(registers: int, shared: int, num_warps: int, expected: int) -> None:
    from kernels.checks.cards import ARCHITECTURES
    from kernels.checks.compile import blocks_per_sm

    assert blocks_per_sm(ARCHITECTURES["sm_86"], registers, shared, num_warps) == expected

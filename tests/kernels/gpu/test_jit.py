"""Run every launcher through Triton's real JIT up to the launch, and check that it finds compiled kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from kernels.checks import compile
from kernels.checks.cases import step_cases
from tests.kernels.stand_in_driver import launched, standing_in

def main():
    card, folder, dtype, p = sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3]), float(sys.argv[4])
    cases = step_cases(dtype, 2, 33, 3, 32, 87, p, p, rotary=True)
    filled = [compile.fill_cache(card, folder, 2, cases) for _ in range(2)]
    found = {}
    with standing_in(card) as (launches, hits):
        for case in cases:
            before = len(launches)
            launched(case)
            found[case.op] = [launch._asdict() for launch in launches[before:]]
    json.dump({"filled": filled, "hits": hits, "launches": found}, sys.stdout)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(("card", "dtype", "dropout_p"), [("sm_90", "bfloat16", 0.2), ("sm_86", "float32", 0.0)])
def test_the_jit_launches_every_kernel_from_a_cache_filled_beforehand(
    card: str, dtype: str, dropout_p: float, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), card, str(tmp_path / "cache"), dtype]
    process = subprocess.run([*command, str(dropout_p)], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    expected = {
        "attention": ["forward_kernel", "dq_kernel", "dkv_kernel"],
        "layer_norm": ["forward_kernel", "backward_kernel"],
        "add_dropout_layer_norm": ["forward_kernel", "backward_kernel"],
        "cross_entropy": ["forward_kernel", "backward_kernel"],
        "rotary": ["forward_kernel", "backward_kernel"],
    }
    launches = found["launches"]
    assert {op: [launch["name"] for launch in each] for op, each in launches.items()} == expected
    count = sum(map(len, expected.values()))
    first, second = found["filled"]
    assert (first["hits"], first["misses"], first["failed"]) == (0, count, [])
    assert (second["hits"], second["misses"], second["failed"]) == (count, 0, [])
    assert found["hits"] == [True] * count, "the JIT compiled what should have been in its cache"
    rows = 2 * 33
    assert [launch["grid"] for launch in launches["layer_norm"]] == [[rows, 1, 1]] * 2
    blocks = {"bfloat16": 1, "float32": 2}[dtype]  # of 64 and of 32 rows of the 33
    assert launches["attention"][0]["grid"] == [2 * 3 * blocks, 1, 1]
    assert launches["attention"][0]["arguments"][:3] == [f"torch.{dtype}"] * 3
    assert ("torch.int64" in launches["attention"][0]["arguments"]) == (dropout_p > 0), "the seed"


PRESETS = """
import sys
import torch
from charformer.presets import PRESETS
from charformer.model.gpt import GPT
from dataclasses import replace
from kernels import ops
from kernels.checks import compile
from kernels.checks.cases import DTYPE_NAMES, cases
from kernels.gpu.launch import recorded

def key(launch):
    kinds = []
    for name, value in launch.arguments.items():
        is_constant = name.isupper() or value is None
        kinds.append((name, value if is_constant else getattr(value, "dtype", type(value))))
    return launch.kernel.aligned.fn.__module__, launch.kernel.name, launch.is_aligned, launch.tile, tuple(kinds)

compiled = {key(launch) for case in compile.distinct(cases()) for launch in compile.launches(case, "sm_90")}
for name, preset in PRESETS.items():
    for dtype in (torch.float32, torch.bfloat16):
        for vocab in (65, 87, 96):
            model = GPT(replace(preset.model, n_layer=2, vocab_size=vocab))
            ids = torch.zeros(2, 65, dtype=torch.int64)
            prior = torch.full((2, 64, vocab), 1 / vocab) if preset.model.ngram_order else None
            with recorded("sm_90") as launches:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    logits = model(ids[:, :-1], None, prior)
                ops.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            missing = {key(launch) for launch in launches} - compiled
            assert len(launches) >= 2 * 7 + 4 + 4 * bool(preset.model.rope_base), len(launches)
            assert not missing, (name, dtype, vocab, missing)
"""


def test_what_is_compiled_beforehand_has_every_presets_kernels() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", PRESETS]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stderr

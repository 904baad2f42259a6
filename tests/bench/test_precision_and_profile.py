"""Run bench.precision and bench.onnx_profile as a user does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import call


@pytest.fixture
def copied(trained_run: Path, text_file: Path, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for name in ("config.json", "vocab.json", "model.safetensors"):
        (tmp_path / "run" / name).write_bytes((trained_run / name).read_bytes())
    return tmp_path


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200)


def test_precision(copied: Path) -> None:
    done = bench("bench.precision", "--run", copied / "run", "--rounds", "1", "--json", copied / "r.json")
    assert done.returncode == 0, done.stderr
    rows = {row["precision"]: row for row in json.loads((copied / "r.json").read_text("utf-8"))["rows"]}
    assert rows["fp32"]["kl"] < 1e-9 < rows["int8"]["kl"] < rows["int4"]["kl"]
    assert rows["fp32"]["bytes"] > rows["int8"]["bytes"]
    assert all(row["chars_per_second"]["p50"] > 0 for row in rows.values())


def test_profile(copied: Path) -> None:
    exported = call("charformer-export", "--run", copied / "run", "--out", copied / "m.onnx", cwd=copied)
    assert exported.returncode == 0, exported.stderr
    done = bench("bench.onnx_profile", copied / "m.onnx", "--json", copied / "r.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((copied / "r.json").read_text("utf-8"))["rows"]
    nodes = {row["operator"]: row["nodes"] for row in rows if row["characters_a_run"] == 1}
    assert nodes["DynamicQuantizeMatMul"] == 4 * 2 + 1
    assert nodes["GroupQueryAttention"] == 2
    assert sum(row["share"] for row in rows) == pytest.approx(2)
    other = call("bench.onnx_profile", copied / "r.json", cwd=copied)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert f"cannot use {copied / 'r.json'}: " in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench.precision", "--run", "nowhere"), "bench.precision: there is no run in nowhere"),
        (("bench.precision", "--run", "nowhere", "--json", "no/folder.json"), "'no/folder.json' cannot be written"),
        (("bench.onnx_profile", "nowhere.onnx"), "bench.onnx_profile: nowhere.onnx: No such file"),
        (("bench.sampling", "--run", "nowhere"), "bench.sampling: there is no run in nowhere"),
        (("bench.sampling", "--rounds", "0"), "'0' is not a positive whole number"),
        (("bench.freeze", "--steps", "-1"), "'-1' is not a positive whole number"),
        (
            ("bench.freeze", "--pretrain-data", __file__, "--finetune-data", "none"),
            "bench.freeze: there is no file none",
        ),
    ],
)
def test_a_mistake_is_one_line_and_said_before_the_work(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr

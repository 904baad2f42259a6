"""Run bench.step, bench.memory and bench.overhead on small texts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import memory, step
from bench.harness.stopwatch import Stopwatch
from charformer.config import ModelConfig
from charformer.data import corpus as corpora
from charformer.device import choose_dtype
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.training import estimate
from tests.commands import call

CPU = torch.device("cpu")


class Listing(Stopwatch):
    """A stopwatch that lists the parts in the order in which they began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []

    def begin(self, part: str) -> None:
        self.begun.append(part)
        super().begin(part)


@pytest.fixture(autouse=True)
def small_nano() -> None:
    """Leave the preset as it is, since in a small model the matrix products are little of a step."""


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a bench in this process, and returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        done = call(f"bench.{name}", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def text(english: str, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(english[:16_000], "utf-8")
    return path


def test_the_parts_of_a_step_are_all_of_it(bench: Callable[..., str], tmp_path: Path, text: Path) -> None:
    file = tmp_path / "step.json"
    printed = bench("step", "--preset", "nano", "--steps", "3", "--data", str(text), "--json", str(file))
    assert "matmuls" in printed
    (row,) = json.loads(file.read_text("utf-8"))["rows"]
    parts = row["seconds"]
    assert sum(parts.values()) == pytest.approx(row["step_seconds"], rel=0.25)
    assert parts["rest"] < 0.5 * row["step_seconds"]
    assert parts["matmuls"] > 0.5 * row["matmul_seconds"] > 0
    assert parts["attention"] > 0.3 * row["attention_matmul_seconds"] > 0
    assert min(parts["attention"], parts["add_norm"], parts["activation"], parts["optimizer"]) > 0


@pytest.mark.parametrize("relu_power", [1, 2])
def test_each_part_of_a_forward_pass_is_timed(relu_power: int) -> None:
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7, relu_power=relu_power))
    watch = Listing()
    with step._forward_timed(model, watch), watch.part("rest"):
        model(torch.zeros(1, 8, dtype=torch.int64))
    block = ["matmuls", "attention", "matmuls", "add_norm", "matmuls", "activation", "matmuls", "add_norm"]
    assert watch.begun == ["rest", "add_norm", *block, *block, "matmuls"]
    assert set(watch.seconds) == {"rest", *block}
    model(torch.zeros(1, 8, dtype=torch.int64))
    assert len(watch.begun) == 19, "nothing is timed outside the context"


def test_memory_is_counted_and_measured(
    bench: Callable[..., str], tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "memory.json"
    monkeypatch.setattr(memory, "BATCHES", (2, 8))
    monkeypatch.setattr(memory, "CONTEXTS", (64,))
    printed = bench("memory", "--preset", "nano", "--data", str(text), "--json", str(found))
    assert "counted on a GPU" in printed
    rows = json.loads(found.read_text("utf-8"))["rows"]
    assert [(row["batch"], row["context"]) for row in rows] == [(2, 64), (8, 64)]
    for row in rows:
        assert 0 < row["counted_on_gpu_bytes"] < row["peak_memory_bytes"]
    assert rows[0]["counted_bytes"] < rows[1]["counted_bytes"]
    corpus, preset = corpora.load(str(text)), PRESETS["nano"]
    model = GPT(replace(preset.model, block_size=64, vocab_size=len(corpus.alphabet)))
    network = estimate.memory(model, preset.pretrain, choose_dtype("auto", CPU), fused=False, sequences=2).of(2)
    assert rows[0]["counted_bytes"] - network > 2 * len(corpus.train)  # the prior's tables


def test_time_outside_the_steps_is_measured(bench: Callable[..., str], tmp_path: Path, text: Path) -> None:
    found = tmp_path / "overhead.json"
    data = ("--pretrain-data", str(text), "--finetune-data", str(text))
    bench("overhead", *data, "--steps", "3", "--json", str(found))
    rows = json.loads(found.read_text("utf-8"))["rows"]
    assert [(row["stage"], row["freeze"]) for row in rows] == [
        ("pretrain", "none"), ("finetune", "none"), ("finetune", "attention"), ("finetune", "trunk"),
    ]  # fmt: skip
    for row in rows:
        seconds = row["seconds"]
        assert min(seconds.values()) > 0, seconds
        assert 0 < row["share"] < 1
    full, trunk = rows[1]["seconds"], rows[3]["seconds"]
    assert trunk["steps"] < full["steps"]

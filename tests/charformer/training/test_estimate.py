"""Compare the estimated memory of a training with what PyTorch keeps and what a process takes."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.model.freeze import FREEZES, freeze, train_mode
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.training.estimate import GPU_SIZES, RESERVE, Memory, kept_bytes, memory, probe
from charformer.training.session import Place, prepare_pretrain
from kernels import backend, ops
from tests.commands import call, run

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=48, vocab_size=50)
SHAPES = {
    "baseline": SMALL,
    "no dropout": replace(SMALL, dropout=0.0, attention_dropout=0.0),
    "modern": replace(SMALL, dropout=0.1, attention_dropout=0.0, rope_base=1e4, relu_power=2),
    "longer than a tile": replace(SMALL, n_layer=1, block_size=256),
}


def build(shape: ModelConfig, what: str = "none") -> GPT:
    torch.manual_seed(0)
    model = GPT(shape)
    freeze(model, what)
    train_mode(model)
    return model


def kept_by_pytorch(model: GPT, dtype: torch.dtype, batch: int) -> int:
    """Return the bytes of the distinct tensors that a forward pass keeps, without parameters."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in apart:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    windows = torch.randint(model.config.vocab_size, (batch, model.config.block_size + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(windows[:, :-1])
        ops.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("what", FREEZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_character_keeps_what_pytorch_keeps(shape: ModelConfig, dtype: torch.dtype, what: str) -> None:
    model = build(shape, what)
    more = kept_by_pytorch(model, dtype, 4) - kept_by_pytorch(model, dtype, 2)
    wanted = more / 2 / shape.block_size
    assert 0.98 * wanted <= kept_bytes(model, dtype, fused=False, sequences=4) <= 1.08 * wanted


@pytest.mark.skipif(not (backend.TRITON and backend.interpreted()), reason="interprets the kernels")
@pytest.mark.parametrize("what", FREEZES)
@pytest.mark.parametrize("shape", [SHAPES["baseline"], SHAPES["modern"]], ids=["baseline", "modern"])
def test_the_kernels_of_a_gpu_keep_what_is_counted_too(shape: ModelConfig, what: str) -> None:
    shape = replace(shape, n_layer=1, block_size=16)
    model = build(shape, what)
    with backend.force("triton"):
        more = kept_by_pytorch(model, torch.bfloat16, 3) - kept_by_pytorch(model, torch.bfloat16, 2)
    assert kept_bytes(model, torch.bfloat16, fused=True) == pytest.approx(more / shape.block_size, rel=0.02)


TRAIN = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from charformer.presets import PRESETS
from charformer.data.corpus import load
from charformer.device import keep_freed_memory, memory_bytes
from charformer.model.freeze import freeze, train_mode
from charformer.training.estimate import memory
from charformer.data.vocab import Vocab
from charformer.model.gpt import GPT
from charformer.runs.folder import RunDir
from charformer.training.trainer import Trainer
preset, batch, dtype, text = PRESETS[sys.argv[1]], int(sys.argv[2]), getattr(torch, sys.argv[3]), sys.argv[5]
keep_freed_memory()
device, training, corpus = torch.device("cpu"), replace(preset.pretrain, batch_size=batch), load(text)
vocab = Vocab.of(corpus.alphabet)
model = GPT(replace(preset.model, vocab_size=len(vocab)))
freeze(model, sys.argv[4])
train_mode(model)
trainer = Trainer(model, vocab, corpus, training, RunDir("nowhere"), device, dtype)
before = memory_bytes(device)
for _ in range(2):
    trainer.train_step(1e-3)
found = memory(model, training, dtype, fused=False, sequences=batch)
print(memory_bytes(device) - before, found.of(batch) - 4 * sum(p.numel() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux counts it")
@pytest.mark.parametrize(
    ("preset", "batch", "dtype", "what"),
    [
        ("nano", 32, "bfloat16", "none"),
        ("baseline-as-coded", 24, "float32", "none"),
        ("baseline", 32, "bfloat16", "trunk"),
    ],
)
def test_a_process_takes_about_as_much(preset: str, batch: int, dtype: str, what: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question\n" * 500, "utf-8")
    command = [sys.executable, "-c", TRAIN, preset, str(batch), dtype, what, str(text)]
    taken, said = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert (
        0.75 * taken - 100e6 <= said <= 1.35 * taken
    )  # PyTorch's own code and the scratch memory of its matmuls are some 100 MB


def test_fast_fits_a_card_of_four_gigabytes() -> None:
    for preset in ("fast", "nano", "best", "baseline"):
        train_config = PRESETS[preset].pretrain
        model = build(replace(PRESETS[preset].model, vocab_size=100))
        found = memory(model, train_config, torch.bfloat16, fused=True)
        assert found.of(train_config.batch_size) <= GPU_SIZES[0] * 2**30 - RESERVE["cuda"]


def test_frozen_weights_have_neither_gradients_nor_state() -> None:
    train_config = TrainConfig()
    found = {}
    for what in FREEZES:
        model = build(replace(PRESETS["baseline"].model, vocab_size=100), what)
        found[what] = memory(model, train_config, torch.float32, fused=False)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert (found[what].gradients, found[what].optimizer) == (4 * trained, 8 * trained)
    assert found["trunk"].of(32) < 0.4 * found["none"].of(32)


def test_the_largest_batch() -> None:
    found = Memory(weights=100, gradients=50, optimizer=50, sequence=30)
    assert found.of(3) == 290
    assert [found.largest_batch(size) for size in (289, 290, 229, 10)] == [2, 3, 0, 0]


def test_the_command_trains_nothing_and_reports_its_estimate(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("all the world is a stage\n" * 200, "utf-8")
    out = tmp_path / "run"
    shape = ("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "32", "--steps", "200")
    done = run("charformer-train", "--plan", "--data", text, "--out", out, "--json", *shape, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not out.exists()
    for word in ("parameters", "memory", "fits", "on a GPU", "characters/s", "for 200 steps"):
        assert word in done.stdout
    content = json.loads(done.stdout.splitlines()[-1])
    assert content["fits"] is True
    assert content["chars_per_second"] > 0
    assert content["train_seconds"] == pytest.approx(200 * 8 * 32 / content["chars_per_second"])


def test_a_training_that_does_not_fit_is_not_tried(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("all the world is a stage\n" * 200, "utf-8")
    big = ["--batch-size", "10000000", "--block-size", "64"]
    done = call("charformer-train", "--plan", "--data", text, "--json", *big, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "does not fit" in done.stdout
    content = json.loads(done.stdout.splitlines()[-1])
    assert (content["fits"], content["chars_per_second"]) == (False, None)


def test_it_is_for_a_training_that_has_not_begun(tmp_path: Path) -> None:
    done = call("charformer-train", "--plan", "--resume", "--out", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--plan" in done.stderr


def test_evaluations_after_the_first_may_take_less(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_config = TrainConfig(batch_size=2, max_steps=10, eval_interval=4)
    text, place = corpus.load(str(text_file)), Place(torch.device("cpu"))
    shape = replace(SMALL, block_size=20)
    trainer = prepare_pretrain(RunDir(tmp_path / "run"), shape, train_config, "nano", text, place).trainer
    pauses = iter([0.4, 0.1])
    monkeypatch.setattr(trainer, "subset_loss", lambda split: time.sleep(next(pauses)) or 3.0)
    expected = 2 * (0.4 + 3 * 0.1)  # of two splits: before the first step, and at steps 4, 8 and 10
    assert expected <= probe(trainer, seconds=0.1).eval_seconds < expected + 0.8


def test_the_score_at_the_end_is_in_the_plan(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_config = TrainConfig(batch_size=2, max_steps=10, eval_interval=4)
    text, place = corpus.load(str(text_file)), Place(torch.device("cpu"))
    shape = replace(SMALL, block_size=20)
    trainer = prepare_pretrain(RunDir(tmp_path / "run"), shape, train_config, "nano", text, place).trainer
    monkeypatch.setattr(trainer, "score", lambda most: time.sleep(0.04) or 3.0)  # of two windows of 20 characters
    whole = 0.001 * (len(text.validation) - 1)
    assert probe(trainer, seconds=0.1).score_seconds == pytest.approx(whole, rel=0.5)
    assert probe(trainer, seconds=0.1, scored=400).score_seconds == pytest.approx(0.4, rel=0.5)

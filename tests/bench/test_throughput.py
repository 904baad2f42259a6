"""Test the arithmetic of bench.throughput and its handling of variants that fail, and run the command."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import throughput
from bench.engines.baseline import Baseline
from bench.engines.matmuls import MatMuls
from bench.engines.variant import Variant
from bench.harness import flops, projection, results, scaling
from bench.harness.interleave import interleave
from bench.harness.training import TrainingEntry
from charformer.config import ModelConfig
from charformer.data import corpus as corpora
from charformer.model.freeze import freeze
from charformer.model.gpt import GPT
from tests.commands import call

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.0, attention_dropout=0.0, vocab_size=300)
LEARNS = """
import torch
from dataclasses import dataclass

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("a line that is no answer")
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, x, y):
        logits = self.table(x)
        return logits, torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=0.1, betas=betas)
"""


def checkout(folder: Path, code: str = LEARNS) -> Path:
    """Return a folder that looks like a checkout of nanoGPT but has another model."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(code, encoding="utf-8")
    return folder


def entered(text_file: Path, variants: list[Variant], **options: str) -> list[TrainingEntry]:
    options |= {"device": "cpu"}
    given = {"corpus": corpora.load(str(text_file)).summary(), **options}
    entries = [TrainingEntry(variant, given, 0.05) for variant in variants]
    interleave(entries, 2)
    return entries


def counted(model: torch.nn.Module, config: ModelConfig, *operators: str) -> float:
    """Return the FLOPs a character of a forward and a backward pass, as PyTorch counts them for ``operators``."""
    ids = torch.zeros((3, config.block_size), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if str(operator) in operators) / ids.numel()


def test_flops_are_those_that_pytorch_counts_but_for_the_half_of_the_scores_that_is_masked() -> None:
    scores = SMALL.n_layer * SMALL.n_embd * SMALL.block_size
    whole = counted(Baseline(SMALL), SMALL, "aten.mm", "aten.addmm", "aten.bmm")
    assert flops.per_character(SMALL) == whole - 6 * scores
    for what, passes in (("none", 6), ("attention", 6), ("trunk", 2)):
        model = GPT(SMALL)
        freeze(model, what)
        linears = counted(
            model, SMALL, "aten.mm", "aten.addmm"
        )  # attention on the CPU is one operator, which PyTorch does not count
        assert flops.per_character(SMALL, what) == linears + passes * scores


@pytest.mark.parametrize("length", [40, 64, 150])
def test_matmuls_alone_are_those_of_a_step(length: int) -> None:
    shape = replace(SMALL, block_size=length)
    matmuls = MatMuls(Variant("matmuls", "nano", shape, 3), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        matmuls.step(lambda: None)
    matrices = sum(math.prod(size) for name, size in shape.weight_shapes().items() if len(size) == 2)
    matrices -= (shape.vocab_size + length) * shape.n_embd  # the embeddings
    assert counter.get_total_flops() == 6 * matrices * 3 * length
    with FlopCounterMode(display=False) as counter:
        matmuls.attention()
    blocks = [(min(64, length - first), min(first + 64, length)) for first in range(0, length, 64)]  # queries, and keys
    assert counter.get_total_flops() == 2 * 6 * 2 * (3 * 2) * 16 * sum(rows * seen for rows, seen in blocks)


def test_a_variant_survives_its_json() -> None:
    variant = Variant("nanogpt", "nano", SMALL, 3, "bfloat16", "trunk", True, ("a", "b"))
    assert Variant.from_dict(json.loads(json.dumps(asdict(variant)))) == variant


def test_variants_train_in_turn_and_say_what_they_did(text_file: Path) -> None:
    variants = [Variant(engine, "nano", SMALL, 4) for engine in ("charformer", "baseline", "matmuls")]
    ours, theirs, matmuls = entered(text_file, variants)
    for entry in (ours, theirs):
        row = entry.row("interleaved", {"float32": 1e12})
        assert set(results.ROW) <= set(row)
        assert row["error"] is None
        assert row["loss_after"] < row["loss_before"] - 0.1
        assert row["threads"] == torch.get_num_threads()
        assert len(row["turns"]) == 2
        assert row["samples"] == len(entry.steps) >= 4
        assert set(row["parts"]) == {"data", "forward", "backward", "optimizer", "evaluation"}
        assert all(seconds > 0 for seconds in row["parts"].values())
        wholes = [sum(step) for step in entry.steps]
        parts = sum(row["parts"].values()) - row["parts"]["evaluation"]
        assert min(wholes) / 2 < parts < max(wholes) * 2  # medians of a few steps, and the machine may be busy
        assert 4 * 16 / row["chars_per_second"]["p50"] == pytest.approx(1 / np.median([1 / whole for whole in wholes]))
        assert row["mfu"] == pytest.approx(flops.per_character(SMALL) * 4 * 16 / float(np.median(wholes)) / 1e12)
        assert row["peak_memory_bytes"] > 50e6
    assert ours.answers[0]["parameters"] == sum(p.numel() for p in GPT(SMALL).parameters())
    assert theirs.answers[0]["parameters"] == sum(p.numel() for p in Baseline(SMALL).parameters())
    assert matmuls.flops_per_second > 1e8
    assert matmuls.row("interleaved", {"float32": 1e12})["mfu"] is None


FAILURES = {
    "raise MemoryError()": "OOM",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "OOM",
    "raise RuntimeError('[enforce fail] DefaultCPUAllocator: not enough memory: can\\'t allocate memory')": "OOM",
    "raise SystemExit(3)": "stopped before it answered, with status 3",
    "1 / 0": "ZeroDivisionError: division by zero",
    LEARNS.replace("lr=0.1", "lr=0.0"): "does not learn: its loss went from",
}


def test_those_that_fail_give_a_reason_and_the_others_continue(text_file: Path, tmp_path: Path) -> None:
    given = {"corpus": corpora.load(str(text_file)).summary(), "device": "cpu"}
    entries = [
        TrainingEntry(
            Variant("nanogpt", "nano", SMALL, 4), given | {"nanogpt": str(checkout(tmp_path / str(number), code))}, 0.05
        )
        for number, code in enumerate((*FAILURES, LEARNS))
    ]
    interleave(entries, 2)
    *failed, other = entries
    for entry, error in zip(failed, FAILURES.values(), strict=True):
        row = entry.row("interleaved", {})
        assert error in row["error"]
        assert (row["chars_per_second"], row["mfu"], row["parts"], row["turns"]) == (None, None, None, [])
    assert other.error is None
    assert len(other.turns) == 2


def row(engine: str, preset: str, speed: float, **more: Any) -> dict[str, Any]:
    shape = {"baseline": (32, 384), "baseline-as-coded": (34, 128)}.get(preset, (8, 256))
    percentiles = {"p20": speed, "p50": speed, "p80": speed}
    given = {"part": "interleaved", "freeze": "none", "batch": shape[0], "context": shape[1], "parts": None}
    return results.row(engine=engine, preset=preset, chars_per_second=percentiles, **given | more)


def test_the_whole_job_is_ten_thousand_steps_and_its_evaluations() -> None:
    parts = {"evaluation": 0.5}
    theirs = row("baseline", "baseline", 12_288, parts=parts)  # one step a second
    ours = row("charformer", "baseline", 5 * 12_288, parts=parts)
    frozen = row("charformer", "baseline", 1e9, parts=parts, freeze="trunk")
    found = projection.project([frozen, ours, theirs], "baseline")
    assert found is not None
    assert found["baseline_minutes"] == pytest.approx((10_000 + 2 * 11 * 400 * 0.5) / 60)
    assert found["charformer_minutes"] == pytest.approx((10_000 / 5 + 2 * 11 * 2 * 5 * 0.5) / 60)
    assert projection.project([ours], "baseline") is None
    assert projection.project([theirs, ours | {"parts": None}], "baseline") is None
    assert projection.project([row("baseline", "nano", 1, parts=parts), row("charformer", "nano", 1)], "nano") is None


def test_the_fitted_exponent_is_that_of_the_power() -> None:
    rows = [
        row("charformer", "x", 1e9 * value**-1.5, part="scaling", axis="width", value=value)
        for value in (128, 256, 512)
    ]
    assert scaling.fits([*rows, row("baseline", "x", 5, part="scaling", axis="width", value=128)]) == [
        {"engine": "charformer", "axis": "width", "exponent": pytest.approx(1.5)}
    ]


def test_only_our_variants_have_a_prior_and_each_says_how_its_work_differs() -> None:
    found = throughput.variants("nano", 87, "bfloat16", None)
    assert {variant.engine for variant in found if variant.model.ngram_order} == {"charformer", "matmuls"}
    assert all("n-gram prior" in variant.differs for variant in found if variant.engine == "charformer")
    (plain,) = (variant for variant in found if variant.engine == "baseline")
    assert plain.differs == ()
    assert "ngram_prior.input.weight" not in plain.model.weight_shapes()


def test_points_change_one_thing_and_keep_the_head_width() -> None:
    for axis, value, variant in scaling.points(87, "float32"):
        assert variant.model.n_embd // variant.model.n_head == 64
        if axis == "context":
            assert (variant.model.block_size, variant.characters) == (value, value * (4096 // value))


FLAGS = ["--preset", "nano", "--rounds", "2", "--seconds", "0.05"]


def test_the_command_end_to_end(text_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    done = call("bench.throughput", *FLAGS, "--data", str(text_file), "--json", str(result), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = results.read_result(result)
    rows = content["rows"]
    assert {row["engine"] for row in rows} >= {"charformer", "baseline", "matmuls"}
    assert {row["freeze"] for row in rows if row["engine"] == "charformer"} == {"none", "attention", "trunk"}
    assert all(row["error"] is None and len(row["turns"]) == 2 for row in rows)
    assert all(row["flops_per_second"] > 1e9 for row in rows if row["engine"] == "matmuls")
    assert content["projection"] == []  # nano is not the baseline's shape
    assert "bench.throughput" not in done.stderr
    for words in ("baseline fp32", "charformer fp32: scores scaled", "backward", "GFLOP/s"):
        assert words in done.stdout
    shown = call("bench.report", result, cwd=tmp_path)
    assert "| baseline fp32" in shown.stdout


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_measured(text_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    command = [sys.executable, "-m", "bench.throughput", *FLAGS, "--rounds", "1000"]
    command += ["--data", str(text_file), "--json", str(result)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        bench = psutil.Process(process.pid)
        until = time.monotonic() + 200
        while sum("bench.harness.worker" in " ".join(child.cmdline()) for child in bench.children()) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)  # the second variant starts once the first has been checked
        os.killpg(process.pid, signal.SIGINT)  # as from a terminal
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    rows = results.read_result(result)["rows"]
    assert rows[0]["loss_after"] < rows[0]["loss_before"]
    assert all(len(row["turns"]) < 1000 for row in rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nanogpt", "nowhere"], "nowhere has no model.py"),
        (["--rounds", "0"], "not a positive whole number"),
        (["--json", "."], "cannot be written"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--preset", "mega"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = throughput.main(flags)
    except SystemExit as exit:
        code = exit.code
    errors = capsys.readouterr().err
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1

"""Test the samplers' protocol and the figures of bench.sampling, and run the bench once on a small model."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import sampling
from bench.engines import texts
from bench.engines.baseline import Baseline
from bench.engines.sampling_models import random_run
from bench.harness.sampling import SamplingEntry, interleave_samplers, measure_alone
from charformer.config import ModelConfig
from charformer.errors import UserError
from tests.commands import call

TEXTS = """
import time
from bench.engines.texts import answer

def handler(threads, batch, pause=0.0, fail=False):
    texts = []
    if fail:
        raise SystemExit(3)

    def generate(greedy):
        time.sleep(pause)
        texts.append(greedy)
        return [threads, int(greedy), len(texts)]

    return answer(generate)
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SamplingEntry]:
    """Return a function that makes entries whose texts encode the threads, whether they are greedy, and a count."""
    (tmp_path / "some_texts.py").write_text(TEXTS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda engine="a", precision="x", batch=1, **options: SamplingEntry(
        "some_texts", options, engine, precision, batch
    )


def test_the_baseline_has_the_parameters_that_its_page_says() -> None:
    model = Baseline(ModelConfig(vocab_size=87))
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_854_999


def test_the_baseline_reads_only_what_came_before_and_writes_on() -> None:
    torch.manual_seed(0)
    model = Baseline(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=7)).eval()
    ids = torch.arange(8)[None] % 7
    changed = ids.clone()
    changed[0, 5] = 6
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :5], model(changed)[:, :5])
        assert (model(ids)[:, 5:] != model(changed)[:, 5:]).any()
    made = model.generate(ids[:, :3], 12)  # past the context
    assert made.shape == (1, 15)
    assert (made[:, :3] == ids[:, :3]).all()


def test_samplers_take_turns_at_their_best_threads(entry: Callable[..., SamplingEntry]) -> None:
    done: list[str] = []
    raced = interleave_samplers([entry(), entry("b", "y", 4)], 3, lambda doing, *_: done.append(doing))
    assert [len(found.samples) for found in raced] == [3, 3]
    assert all(found.greedy == [found.threads, 1, 1] for found in raced)
    assert len(done) == 2 + 2 + 3 * 2
    row = raced[1].row("interleaved", "preset", 8)
    assert row["chars_per_second"]["p20"] <= row["chars_per_second"]["p50"] <= row["chars_per_second"]["p80"]
    assert row["turns"] == raced[1].samples
    assert (row["engine"], row["precision"], row["batch"], row["context"]) == ("b", "y", 4, 8)


def test_speed_is_characters_of_all_texts_over_seconds(entry: Callable[..., SamplingEntry]) -> None:
    found = measure_alone(entry(batch=3, pause=0.2), 1, 2)
    assert 3 * 3 / 0.4 < max(found.samples) <= 3 * 3 / 0.2


def test_the_first_half_second_of_a_turn_does_not_count_unless_a_text_takes_long(
    entry: Callable[..., SamplingEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = measure_alone(entry(pause=0.1), 1, 2)
    made = quick.turns[0]["ids"][2]
    assert 4 <= made <= 1 + 5 + 2, "one greedy text, those of half a second, and two that count"
    assert len(quick.samples) == 2
    monkeypatch.setattr(texts, "SLOW_SECONDS", 0.2)
    slow = texts.answer(lambda greedy: [time.sleep(0.3), made.append(greedy)])
    made = []
    slow("greedy")
    slow("sample", "2")
    assert made == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ctranslate2 and onnxruntime-genai: missing"),
        ({"rope_base": 1e4}, "learned positions"),
        ({"relu_power": 2}, "plain ReLU"),
        ({"ngram_order": 3}, "no n-gram prior"),
    ],
)
def test_peers_that_are_missing_or_cannot_have_the_run_are_left_out(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=7, **changes)
    run = random_run(tmp_path / "run", config)
    args = argparse.Namespace(peers=Path("nowhere/bin/python"), characters=4)
    assert sampling._peers(args, sampling._versions(args.peers), run, tmp_path) == []
    assert words in capsys.readouterr().out


def test_a_sampler_that_dies_is_named(entry: Callable[..., SamplingEntry]) -> None:
    with pytest.raises(UserError, match="a x: stopped before it answered, with status 3"):
        measure_alone(entry(fail=True), 1, 1)


def test_the_bench_end_to_end(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--run", str(trained_run), "--characters", "20", "--rounds", "2", "--peers", "nowhere/bin/python"]
    monkeypatch.setattr(sampling, "SHOWN", ("fp32", "int8"))
    monkeypatch.setattr(sampling, "BATCHES", (1, 4))
    monkeypatch.setattr("bench.harness.sampling.THREADS", (1,))
    done = call("bench.sampling", *flags, "--json", tmp_path / "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the peers' rows are missing: they need learned positions" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert result["schema"] == 1
    assert {row["engine"] for row in result["rows"]} == {"charformer-onnx", "charformer-torch", "baseline"}
    assert all(row["samples"] == len(row["turns"]) == 2 for row in result["rows"])
    assert result["greedy_characters_like_pytorch"]["charformer-onnx fp32"] == 20
    assert all(floor["reached"] > 0 for floor in result["floor"])
    assert result["first_character_seconds"]["sample"]["p50"] > 0
    command = [sys.executable, "-m", "bench.sampling", *flags, "--characters", "24"]
    too_many = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert too_many.returncode == 2
    assert "fewer --characters" in too_many.stderr
    assert too_many.stderr.count("\n") == 1

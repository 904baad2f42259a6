"""Run bench.convergence as a user does, on a short text."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import convergence
from bench.engines import nanogpt_recipe
from bench.harness import results
from charformer.data import corpus as corpora
from charformer.presets import PRESETS
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from tests.bench.test_throughput import checkout

COURSE = ["--preset", "nano", "--seeds", "1", "--steps", "60", "--eval-interval", "10", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def small_nano() -> None:
    """Leave the preset as it is, since a process that continues here began with it."""


@pytest.fixture
def nano_without_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the n-gram prior: on such a short text it leaves nothing for the network to learn."""
    nano = PRESETS["nano"]
    monkeypatch.setitem(PRESETS, "nano", replace(nano, model=replace(nano.model, ngram_order=0)))


def flags(text_file: Path, folder: Path, *more: str) -> list[str]:
    return [*COURSE, "--data", str(text_file), "--runs", str(folder / "runs"), *more]


def losses(curve: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(point["step"], point["val_loss"]) for point in curve]


@pytest.mark.usefixtures("nano_without_a_prior")
def test_a_run_ends_at_the_target_on_the_whole_split(text_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    given = flags(text_file, tmp_path, "--target", "3.0", "--json", str(result))
    assert convergence.main(given) == 0
    (row,) = results.read_result(result)["rows"]
    reached = row["reached"]
    assert reached["step"] == row["curve"][-1]["step"] < 60
    assert reached["step"] % 10 == 0
    assert reached["characters"] == reached["step"] * 8 * 256
    assert row["seed"] == 1337

    # The loss, one window after the other, by code that is independent of the trainer.
    model, vocab = checkpoint.load_model(RunDir(tmp_path / "runs" / "nano-1337"))
    ids = corpora.load(str(text_file)).table(vocab)[corpora.load(str(text_file)).validation]
    nats = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 256):
            window = torch.from_numpy(np.asarray(ids[start : start + 257]))
            shares = model.eval()(window[None, :-1])[0].double().log_softmax(-1)
            nats += (-shares[torch.arange(len(window) - 1), window[1:]]).tolist()
    assert len(nats) == len(ids) - 1
    assert reached["val_loss"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert reached["val_loss"] <= 3.0

    before = result.read_bytes()
    assert convergence.main(given) == 0  # nothing remains to be done
    again = json.loads(result.read_text("utf-8"))["rows"][0]
    assert again["reached"] == json.loads(before)["rows"][0]["reached"]
    assert again["curve"] == row["curve"]
    assert convergence.main([*given, "--steps", "70"]) == 2  # other settings


def test_an_unreachable_target_ends_with_the_last_step(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r.json"
    assert convergence.main(flags(text_file, tmp_path, "--steps", "10", "--json", str(result))) == 0
    (row,) = results.read_result(result)["rows"]
    assert row["reached"] is None
    assert [step for step, _ in losses(row["curve"])] == [0, 10]
    assert row["val_loss"] > 1.52
    assert "not reached" in capsys.readouterr().out


def test_nanogpt_s_recipe_runs_beside_ours(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nanogpt_recipe, "STEPS", 30)
    result, folder = tmp_path / "r.json", checkout(tmp_path / "nano")
    given = flags(text_file, tmp_path, "--steps", "4", "--json", str(result), "--nanogpt", str(folder))
    assert convergence.main(given) == 0
    ours, published, as_long = results.read_result(result)["rows"]
    assert published["end"]["step"] == 30
    assert published["end"]["characters"] == 30 * 12 * 64
    assert as_long["end"]["seconds"] > 0.3 * ours["curve"][-1]["seconds"]  # much more where the machine gets busy
    assert as_long["end"]["step"] > 30
    assert "23,040" in capsys.readouterr().out
    assert convergence.main(flags(text_file, tmp_path, "--nanogpt", str(tmp_path))) == 2

    corpus = corpora.load(str(text_file))
    torch.manual_seed(1337)
    engine = nanogpt_recipe._build(corpus, folder)  # its table alone predicts the next character
    ids = corpus.validation.astype(np.int64)
    table = engine.model.table.weight.detach().double().log_softmax(-1)
    expected = float(-table[ids[:-1], ids[1:]].mean())
    assert nanogpt_recipe.whole_validation_loss(engine, corpus) == pytest.approx(expected, abs=1e-5)
    rates = [nanogpt_recipe.learning_rate(step, 2000) for step in range(2000)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[0] == pytest.approx(1e-3 / 101)
    assert rates[1050] == pytest.approx(5.5e-4)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_stopped_bench_continues_where_it_was(text_file: Path, tmp_path: Path) -> None:
    short = ["--steps", "12", "--eval-interval", "4"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    files = [folder.with_suffix(".json") for folder in (whole, stopped)]
    assert convergence.main(flags(text_file, whole, *short, "--json", str(files[0]))) == 0
    given = flags(text_file, stopped, *short, "--json", str(files[1]))
    metrics = stopped / "runs" / "nano-1337" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-m", "bench.convergence", *given], stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (metrics.is_file() and metrics.read_text("utf-8").count("\n") >= 2):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert metrics.read_text("utf-8").count("\n") < 4
    assert convergence.main(given) == 0
    one, other = (results.read_result(path)["rows"][0] for path in files)
    assert losses(one["curve"]) == losses(other["curve"])
    assert one["val_loss"] == other["val_loss"]

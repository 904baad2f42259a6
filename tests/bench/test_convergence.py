"""Run bench.convergence as a user does, on a short text."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import convergence
from bench.engines import nanogpt_recipe
from bench.harness import results
from charformer.data import corpus as corpora
from tests.bench.test_throughput import checkout

COURSE = ["--preset", "nano", "--seeds", "1", "--steps", "12", "--eval-interval", "4", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def small_nano() -> None:
    """Leave the preset as it is, since a process that continues here began with it."""


def flags(text_file: Path, folder: Path, *more: str) -> list[str]:
    return [*COURSE, "--data", str(text_file), "--runs", str(folder / "runs"), *more]


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
    shown = capsys.readouterr().out
    assert "never" in shown
    assert "23,040" in shown
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
def test_a_stopped_bench_continues_where_it_was(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r.json"
    given = flags(text_file, tmp_path, "--seeds", "2", "--target", "9", "--json", str(result))
    metrics = tmp_path / "runs" / "nano-1337" / "metrics.jsonl"
    command = [sys.executable, "-m", "bench.convergence", *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        until = time.monotonic() + 200
        while time.monotonic() < until and not (metrics.is_file() and metrics.read_text("utf-8").count("\n") >= 2):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert metrics.read_text("utf-8").count("\n") < 4

    assert convergence.main(given) == 0
    rows = results.read_result(result)["rows"]
    assert [(row["seed"], row["precision"], row["threads"]) for row in rows] == [
        (seed, "float32", torch.get_num_threads()) for seed in (1337, 1338)
    ]
    one, other = ([(point["step"], point["val_loss"]) for point in row["curve"]] for row in rows)
    assert [step for step, _ in one] == [step for step, _ in other] == [0, 4, 8, 12]
    assert one != other
    assert rows[0]["peak_memory_bytes"] is None, "the process that ended the training saw only a part of it"
    assert rows[1]["peak_memory_bytes"] > 50e6
    assert all(0 < row["val_loss"] == row["summary"]["val_loss"] for row in rows)
    assert "| 1338 | 0.00 M, 0 s | 24,576 |" in re.sub(" +", " ", capsys.readouterr().out)

    assert convergence.main([*given, "--dtype", "bfloat16"]) == 2
    assert "was trained with other settings" in capsys.readouterr().err

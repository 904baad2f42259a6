"""Compare a whole run of the real command through the interpreted kernels with the same run in plain PyTorch."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.commands import call
from tests.kernels.marks import needs_interpreter

FLAGS = [
    *("--n-layer", "1", "--n-head", "2", "--n-embd", "24", "--block-size", "12", "--batch-size", "3", "--verbose"),
    *("--steps", "2", "--eval-batches", "1", "--sample-interval", "0", "--dropout", "0.2", "--dtype", "float32"),
]


def train(folder: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text[:1200], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr("charformer.training.session.SAMPLE_CHARACTERS", 40)  # the interpreter takes long for 500
        return call("charformer-train", "--data", "text.txt", "--out", "run", *FLAGS, "--json", cwd=folder)


def summary(process: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@needs_interpreter
def test_a_run_through_the_kernels_is_the_run_through_the_reference(english: str, tmp_path: Path) -> None:
    plain = train(tmp_path / "reference", english, CHARFORMER_KERNELS="reference")
    kernels = train(tmp_path / "triton", english, CHARFORMER_KERNELS="triton", TRITON_INTERPRET="1")
    assert summary(kernels)["val_loss"] == pytest.approx(summary(plain)["val_loss"], abs=1e-4)
    rows = [(tmp_path / name / "run" / "metrics.jsonl").read_text("utf-8") for name in ("reference", "triton")]
    losses = [[json.loads(line)["train_loss"] for line in text.splitlines()] for text in rows]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert "kernels: triton (CHARFORMER_KERNELS)" in kernels.stderr
    assert "kernels: reference (CHARFORMER_KERNELS)" in plain.stderr


def test_a_run_through_pytorchs_own_functions(english: str, tmp_path: Path) -> None:
    process = train(tmp_path, english, CHARFORMER_KERNELS="pytorch")
    assert 1 < summary(process)["val_loss"] < 5
    assert "kernels: pytorch (CHARFORMER_KERNELS)" in process.stderr


def test_verbose_says_what_runs_on_a_cpu(english: str, tmp_path: Path) -> None:
    process = train(tmp_path, english)
    assert process.returncode == 0
    assert process.stderr.count("kernels:") == 1
    assert "kernels: plain PyTorch" in process.stderr


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        pytest.param({"CHARFORMER_KERNELS": "triton", "TRITON_INTERPRET": "0"}, "NVIDIA GPU", marks=needs_interpreter),
        ({"CHARFORMER_KERNELS": "fast"}, "auto, triton, reference, pytorch"),
    ],
)
def test_kernels_that_cannot_run_are_refused_before_anything_is_made(
    environment: dict[str, str], advice: str, english: str, tmp_path: Path
) -> None:
    process = train(tmp_path, english, **environment)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert advice in process.stderr
    assert not (tmp_path / "run").exists()

"""Training and sampling on an Apple GPU, against the CPU; skipped where PyTorch finds none."""

import json
from pathlib import Path

import pytest
import torch

from charformer.commands import sample, train

pytestmark = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")

SHAPE = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "24", "--batch-size", "8"]
STEPS = ["--eval-interval", "10", "--dtype", "float32", "--dropout", "0", "--attention-dropout", "0", "--json"]


@pytest.mark.parametrize("preset", ["baseline", "nano"])
def test_it_learns_what_the_cpu_learns(
    preset: str, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for device in ("cpu", "mps"):
        flags = ["--preset", preset, "--data", str(text_file), "--out", str(tmp_path / device), "--device", device]
        assert train.main([*flags, *SHAPE, *STEPS, "--steps", "20"]) == 0
        losses[device] = json.loads(capsys.readouterr().out.splitlines()[-1])["val_loss"]
    assert losses["mps"] == pytest.approx(losses["cpu"], abs=0.01)


def test_a_resumed_run_continues_and_samples(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(tmp_path / "run"), "--device", "mps", *STEPS]
    assert train.main(["--preset", "nano", "--data", str(text_file), *flags, *SHAPE, "--steps", "10"]) == 0
    assert train.main(["--resume", "--data", str(text_file), *flags, "--steps", "20"]) == 0
    texts = []
    for device in ("cpu", "mps"):
        capsys.readouterr()
        assert sample.main(["--run", str(tmp_path / "run"), "--device", device, "--prompt", "The", "--seed", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0][:40] == texts[1][:40]

"""Open 600 damaged files, or as many as FUZZ_COUNT says, as the commands do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from charformer.errors import UserError
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_tensors, write_tensors
from tests.commands import call

COUNT = int(os.environ.get("FUZZ_COUNT", "600"))


@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as Linux does")
def test_damaged_files_give_a_result_or_one_clear_line(text_file: Path, tmp_path: Path) -> None:
    shape = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --dropout 0.1 --ngram-order 3"
    settings = "--steps 6 --eval-interval 3 --dtype float32"
    made = call("charformer-train", "--data", str(text_file), *shape.split(), *settings.split(), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert call("charformer-export", cwd=tmp_path).returncode == 0
    fuzz = [sys.executable, "-m", "tests.reliability.fuzz", str(tmp_path / "runs" / "pretrain"), str(COUNT), "0"]
    done = subprocess.run(fuzz, capture_output=True, encoding="utf-8", timeout=COUNT, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found.values()) == COUNT
    refused = sum(times for what, times in found.items() if what.endswith("refused"))
    assert refused > 0.8 * COUNT, "what is damaged is noticed"
    assert "model.onnx, resealed, accepted" in found, "some damage is deep enough to get past every hash"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_under_a_hash_that_fits(
    value: float, trained_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    tensors, metadata = read_tensors(run.weights)
    tensors["head.bias"][3] = value
    write_tensors(run.weights, tensors, metadata)
    with pytest.raises(UserError, match=r"head.bias in .*model.safetensors holds values that are not finite"):
        load_model(run)
    resumed = call("charformer-train", "--resume", "--out", str(run.path), "--json", cwd=tmp_path)
    assert resumed.returncode == 2
    assert "not finite" in resumed.stderr

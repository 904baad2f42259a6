"""Runs and .onnx files of the release before the rooms were laid out still load, resume and sample.

That release made the files in tests/data/previous_release: a run of 20 steps of a tiny model on the squares below, the
last two lines of metrics after 40 steps, and 60 characters sampled with seed 7.
"""

import json
import shutil
from pathlib import Path

import pytest

from charformer.commands import sample, train
from charformer.runs.folder import RunDir

FILES = Path(__file__).parents[1] / "data" / "previous_release"
SQUARES = "".join(f"{n} times {n} is {n * n}\n" for n in range(200))
SAMPLE = ["--seed", "7", "--max-new-tokens", "60"]


@pytest.fixture(params=["nano", "baseline"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_run_resumes_as_it_would_have_then(name: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(FILES / name, run.path)
    text = tmp_path / "squares.txt"
    text.write_text(SQUARES, encoding="utf-8", newline="")
    flags = ["--resume", "--steps", "40", "--data", str(text), "--out", str(run.path)]
    assert train.main(flags) == 0
    expected = [json.loads(line) for line in (FILES / f"{name}-resumed.jsonl").read_text("utf-8").splitlines()]
    for found, then in zip(run.read_metrics()[-2:], expected, strict=True):
        for key in ("step", "characters", "train_loss", "val_loss", "learning_rate"):
            assert found[key] == pytest.approx(then[key], abs=1e-3), key


def test_a_run_samples_what_it_did_then(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--run", str(FILES / name), *SAMPLE]) == 0
    assert capsys.readouterr().out == (FILES / f"{name}-sample.txt").read_text("utf-8")


@pytest.mark.parametrize("file", sorted(path.name for path in FILES.glob("*.onnx")))
def test_an_onnx_file_samples_what_it_did_then(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main(["--onnx", str(FILES / file), *SAMPLE]) == 0
    text = capsys.readouterr().out
    assert len(text) == 61
    if "fp32" in file:  # fewer bits round differently on other processors
        assert text == (FILES / f"{file.partition('-')[0]}-sample.txt").read_text("utf-8")

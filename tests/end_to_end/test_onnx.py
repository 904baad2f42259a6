"""Test charformer-export and charformer-sample --onnx; the first test runs them as a user does."""

import json
import shutil
from pathlib import Path

import pytest

from charformer.sampling.onnx_format import sealed, unsealed
from tests.commands import call, run


@pytest.fixture
def folder(trained_run: Path, tmp_path: Path) -> Path:
    """Return a working folder with a run in it."""
    shutil.copytree(trained_run, tmp_path / "runs" / "pretrain")
    return tmp_path


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with a run and its model.onnx, which tests only read."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(trained_run, folder / "runs" / "pretrain")
    assert call("charformer-export", cwd=folder).returncode == 0
    return folder


def is_source_alone(stderr: str, ending: str) -> bool:
    """Return whether a command has reported only what it samples from."""
    return stderr.count("\n") == 1 and stderr.endswith(f", {ending}\n")


def test_export_then_sample_from_the_file_alone(folder: Path) -> None:
    exported = run("charformer-export", "--precision", "fp32", "--out", "m.onnx", "--json", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    summary = json.loads(exported.stdout.splitlines()[-1])
    assert summary["path"] == "m.onnx"
    assert summary["bytes"] == (folder / "m.onnx").stat().st_size
    assert summary["text"] == "characters of docs.txt's validation split"
    assert summary["max_logit_error"] < 1e-4
    assert "validation loss" in exported.stdout

    same = ["--prompt", "The ", "--seed", "11", "--max-new-tokens", "1000"]
    torch = call("charformer-sample", *same, cwd=folder)
    shutil.rmtree(folder / "runs")  # the file is enough
    onnx = run("charformer-sample", "--onnx", "m.onnx", *same, cwd=folder)
    assert onnx.returncode == 0, onnx.stderr
    assert onnx.stderr.startswith("m.onnx (")
    assert is_source_alone(onnx.stderr, "fp32, seed 11")
    assert onnx.stdout == torch.stdout
    plain = call("charformer-sample", "--onnx", "m.onnx", "--no-speculative", *same, cwd=folder)
    assert plain.stdout == torch.stdout

    several = ["--num-samples", "3", "--seed", "11", "--max-new-tokens", "40", "--json"]
    batch = json.loads(call("charformer-sample", "--onnx", "m.onnx", *several, "--prompt", "The ", cwd=folder).stdout)
    assert batch["onnx"] == "m.onnx"
    assert batch["run"] is None
    assert len(set(batch["samples"])) == 3
    assert "The " + batch["samples"][0] == torch.stdout[:44]


def test_the_run_is_exported_when_it_has_to_be(folder: Path) -> None:
    sample = ["charformer-sample", "--onnx", "--seed", "1", "--max-new-tokens", "30"]
    first = call(*sample, cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "there is no such file yet" in first.stderr
    assert "int8" in first.stderr
    assert len(first.stdout) == 31
    again = call(*sample, cwd=folder)
    assert again.stdout == first.stdout
    assert is_source_alone(again.stderr, "int8, seed 1")

    trained = call("charformer-train", "--resume", "--out", "runs/pretrain", "--steps", "60", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    after = call(*sample, cwd=folder)
    assert "the run has other weights by now" in after.stderr
    assert is_source_alone(call(*sample, cwd=folder).stderr, "seed 1")

    file = folder / "runs" / "pretrain" / "model.onnx"
    file.write_bytes(sealed(unsealed(file.read_bytes()).replace(b'"format": 2', b'"format": 1')))
    kept = sealed(unsealed(file.read_bytes()).replace(b'"precision": "int8"', b'"precision": "int4"'))
    file.write_bytes(kept)
    renewed = call(*sample, cwd=folder).stderr
    assert "an earlier version wrote it" in renewed
    assert "model.onnx: int4" in renewed
    assert is_source_alone(call(*sample, cwd=folder).stderr, "seed 1")

    file.write_bytes(b"no graph")
    broken = call(*sample, cwd=folder)
    assert broken.returncode == 2  # it is not our file, so we must not replace it
    assert "charformer-export writes it again" in broken.stderr
    assert call("charformer-export", cwd=folder).returncode == 0
    assert is_source_alone(call(*sample, cwd=folder).stderr, "seed 1")


def test_without_its_text_a_run_exports_without_a_draft(folder: Path) -> None:
    config = folder / "runs" / "pretrain" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    values["corpus"]["source"] = str(folder / "gone.txt")
    config.write_text(json.dumps(values), encoding="utf-8")
    exported = call("charformer-export", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert "gone.txt is not there any more" in exported.stdout
    assert "random characters" in exported.stdout
    sampled = call("charformer-sample", "--onnx", "--seed", "1", cwd=folder)
    assert (sampled.returncode, sampled.stderr.count("\n")) == (0, 1)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_portable_files_sample_too(folder: Path, precision: str) -> None:
    flags = ["--portable", "--precision", precision, "--out", "web.onnx"]
    assert call("charformer-export", *flags, cwd=folder).returncode == 0
    sampled = call("charformer-sample", "--onnx", "web.onnx", "--seed", "4", "--max-new-tokens", "50", cwd=folder)
    assert sampled.returncode == 0, sampled.stderr
    assert len(sampled.stdout) == 51


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("charformer-export --run nowhere", "there is no run in nowhere"),
        ("charformer-export --out no/such/folder/m.onnx", "cannot write"),
        ("charformer-export --precision int2", "invalid choice"),
        ("charformer-export --out runs", "is not a file"),
        ("charformer-export --out /dev/null", "is not a file"),
        ("charformer-export --out runs/pretrain/model.safetensors", "choose another --out"),
        ("charformer-sample --onnx --threads 99999999999", "--threads"),
        ("charformer-sample --onnx --num-samples 99999999999999999999", "--num-samples"),
        ("charformer-sample --onnx=", "empty name"),
        ("charformer-export --out=", "empty name"),
        ("charformer-export --data nowhere.txt", "there is no file"),
        ("charformer-sample --onnx nowhere.onnx", "cannot read nowhere.onnx"),
        ("charformer-sample --onnx runs/pretrain/vocab.json", "was not written by charformer-export"),
        ("charformer-sample --onnx --temperature -1", "--temperature"),
        ("charformer-sample --onnx --max-new-tokens -1", "--max-new-tokens"),
        ("charformer-sample --onnx --threads 0", "--threads"),
        ("charformer-sample --onnx --prompt é", "U+00E9"),
        ("charformer-sample --onnx --dtype bfloat16", "--dtype does not go with --onnx"),
        ("charformer-sample --onnx --device cpu", "--device does not go with --onnx"),
        ("charformer-sample --onnx m.onnx --run runs/pretrain", "--run does not go with --onnx FILE"),
        ("charformer-sample --onnx --provider cuda", "--precision fp16"),
        ("charformer-sample --no-speculative", "--no-speculative needs --onnx"),
        ("charformer-sample --provider cpu", "--provider needs --onnx"),
    ],
)
def test_mistakes_get_one_line(exported: Path, command: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = call(*command.split(), cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_was_exported_before_decides_how_it_is_exported_again(folder: Path) -> None:
    assert call("charformer-export", "--precision", "fp32", "--portable", cwd=folder).returncode == 0
    assert call("charformer-train", "--resume", "--out", "runs/pretrain", "--steps", "60", cwd=folder).returncode == 0
    again = call("charformer-sample", "--onnx", "--seed", "1", cwd=folder)
    assert again.returncode == 0
    assert "fp32, portable" in again.stderr

"""Test charformer, its subcommands, and texts as arguments."""

import json
import shutil
from pathlib import Path

import pytest

import charformer
from charformer.commands import main as front
from charformer.commands.train_report import continue_command
from charformer.runs.folder import RunDir
from tests.conftest import TINY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_help_and_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["--version"]) == 0
    assert capsys.readouterr().out == f"charformer {charformer.__version__}\n"
    assert front.main([]) == 0
    assert "charformer COMMAND --help" in capsys.readouterr().out
    assert front.main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "charformer: there is no command 'trian'; it can be train, sample, export, runs, completion\n"
    )


def test_train_fine_tune_list_and_sample(here: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(text_file, here / "novel.txt")
    short = ["--steps", "4", "--eval-interval", "2"]
    assert front.main(["train", "novel.txt", *short, *TINY]) == 0
    assert front.main(["train", "novel.txt", "--init-from", "runs/pretrain", *short]) == 0
    assert RunDir("runs/finetune").read_config()["stage"] == "finetune"
    capsys.readouterr()

    assert front.main(["runs"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].split() == ["folder", "stage", "text", "step", "of", "validation", "written"]
    assert lines[2].split()[:3] == ["runs/finetune", "finetune", "novel.txt"]
    assert lines[3].split()[:3] == ["runs/pretrain", "pretrain", "novel.txt"]
    assert front.main(["runs", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["folder"], second["max_steps"]) == ("runs/finetune", 4)
    assert 0 < first["val_loss"] < 10

    assert front.main(["sample", "--max-new-tokens", "5", "--seed", "1"]) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) >= 5


def test_other_models_and_damaged_runs_are_skipped(
    here: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "other", "damaged"):
        shutil.copytree(trained_run, Path("runs", name))
    Path("runs/other/config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    weights = Path("runs/damaged/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    assert front.main(["runs", "--json"]) == 0
    shown = capsys.readouterr()
    assert [row["folder"] for row in json.loads(shown.out)] == ["runs/good"]
    assert len(shown.err.splitlines()) == 2
    for name in ("other/config.json is not a run's", "damaged/model.safetensors: "):
        assert name in shown.err
    assert front.main(["sample", "--max-new-tokens", "5"]) == 0
    assert "\nruns/good (" in capsys.readouterr().err


def test_commands_are_printed_as_the_shell_of_the_system_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Path("my runs\\novel"))
    for platform, out in (("win32", '"my runs\\novel"'), ("linux", "'my runs\\novel'")):
        monkeypatch.setattr("sys.platform", platform)
        assert continue_command("pretrain", run) == f"charformer-train --stage pretrain --resume --out {out}"


def test_a_folder_without_runs_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["runs", "nowhere"]) == 2
    assert capsys.readouterr().err == ("charformer runs: there is no run under nowhere; `charformer-train` makes one\n")


def test_a_finetune_that_says_pretrain_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["train", "--stage", "pretrain", "--init-from", "runs/other"]) == 2
    assert "--init-from is for fine-tuning" in capsys.readouterr().err

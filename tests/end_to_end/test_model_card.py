"""Test the model card that charformer-train writes into a run's folder."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from charformer.commands import sample, train
from tests.conftest import TINY


@pytest.mark.skipif(os.name == "nt", reason="a file name that Windows does not allow")
def test_a_card_holds_the_summary_and_its_own_command_samples(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a`b: [x](y)\n---\n# z.txt"
    shutil.copy(text_file, name)
    assert train.main([name, *TINY[:-2], "--ngram-order", "2", "--steps", "4", "--out", "run", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    card = Path("run/README.md").read_text("utf-8")
    assert f"| validation, {summary['scored_characters']:,} characters | {summary['val_loss']:.4f} |" in card
    assert f"; {summary['trainable']:,} parameters." in card
    assert f"``a`b: [x](y)\\n---\\n# z.txt``, {summary['corpus']['characters']:,} characters" in card
    assert summary["corpus"]["sha256"] in card
    assert "`ngram.safetensors` holds fragments of the text** of up to 3 characters" in card
    assert Path("run/sample.txt").read_text("utf-8").strip("\n") in card

    monkeypatch.chdir("run")
    for line in re.findall("^charformer-sample (.*)$", card, re.MULTILINE):
        assert sample.main([*shlex.split(line), "--max-new-tokens", "3"]) == 0
    program = card.partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(program)
    assert len(capsys.readouterr().out) == 201


def test_a_resumed_training_writes_its_card_again_unless_it_was_changed(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    card = run / "README.md"
    first = card.read_text("utf-8")
    more = ["--resume", "--out", str(run), "--steps"]
    assert train.main([*more, "42"]) == 0
    assert "of the 42 taken, after" in card.read_text("utf-8")
    card.write_text(first + "\nWritten on a train.\n", encoding="utf-8")
    assert train.main([*more, "44"]) == 0
    assert card.read_text("utf-8") == first + "\nWritten on a train.\n"
    assert f"{card} has been changed, so it stays as it is" in capsys.readouterr().err

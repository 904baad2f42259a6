"""Run the programs and the notebook of examples/ as a reader does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(english: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text, and the run that the first example makes from it."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "novel.txt").write_text(english[:20_000], encoding="utf-8")
    done = example("quick_start.py", "novel.txt", "4", cwd=folder)
    assert "validation" in done
    assert "bits a character for 'the end'" in done
    return folder


def example(name: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_freeze(folder: Path) -> None:
    printed = example("freeze.py", "runs/novel", "novel.txt", "2", cwd=folder)
    assert "full: validation" in printed
    assert "attention-frozen: validation" in printed


def test_without_pytorch(folder: Path) -> None:
    export = [sys.executable, "-m", "charformer.commands.export", "--run", "runs/novel", "--out", "novel.onnx"]
    subprocess.run(export, cwd=folder, check=True, capture_output=True)
    printed = example("without_pytorch.py", "novel.onnx", "The ", "In ", cwd=folder)
    assert printed.startswith("The ")
    assert "\nIn " in printed


def test_every_cell_of_the_notebook_runs_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads((EXAMPLES / "charformer.ipynb").read_text("utf-8"))["cells"]
    assert len(cells) == 10
    (tmp_path / "novel.txt").write_bytes((folder / "novel.txt").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("steps = 200", "steps = 3"), names)
    assert len(names["losses"]) >= 2  # type: ignore[arg-type]
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "novel.onnx").is_file()

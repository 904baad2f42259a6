"""The lists of packages in requirements/ agree with pyproject.toml and constraints.txt."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONLY_WITH_A_GPU = ("onnxruntime-gpu", "triton")
ABSENT = {"torch", "triton", "onnx", "ml_dtypes", "matplotlib", "psutil", "shtab"}


def listed(name: str) -> dict[str, str]:
    """Return the requirements of a file, by package."""
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    return by_package([line for line in lines if line and not line.startswith("#")])


def by_package(requirements: list[str]) -> dict[str, str]:
    return {re.match(r"[\w.-]+", line)[0]: line for line in requirements}  # type: ignore[index]


def test_without_a_gpu_all_but_its_packages_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = by_package(project["dependencies"])
    cpu = listed("cpu.txt")
    assert set(cpu) == set(needed) - set(ONLY_WITH_A_GPU)
    for name in set(cpu) - {"onnxruntime"}:
        assert cpu[name] == needed[name]
    assert needed["onnxruntime"].startswith(cpu["onnxruntime"])
    assert listed("sampling.txt").items() <= cpu.items()
    assert listed("dev.txt")["triton"] == needed["triton"]


def test_what_is_installed_is_pinned() -> None:
    pinned = {
        line.partition("==")[0]: line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    }
    for name in ("cpu.txt", "sampling.txt", "dev.txt"):
        assert set(listed(name)) - {"triton"} <= set(pinned), name  # a CUDA build of torch brings its own triton
    ort = [pinned[name].partition("==")[2] for name in ("onnxruntime", "onnxruntime-gpu")]
    assert ort[0] == ort[1]


def run_for_sampling(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a subcommand with every package blocked that requirements/sampling.txt does not bring."""
    script = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {sorted(ABSENT)!r}:
            return self.finder.find_spec(name, path, target)
sys.meta_path = [Without(finder) for finder in sys.meta_path]
from charformer.commands import main
sys.exit(main.main(sys.argv[1:]))
"""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_sampling_imports_nothing_else(trained_run: Path, tmp_path: Path) -> None:
    import charformer

    charformer.load(trained_run).export(tmp_path / "model.onnx")
    done = run_for_sampling("sample", "--onnx", "model.onnx", "--max-new-tokens", "5", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 6


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "--run", "RUN"], "PyTorch is not installed; --onnx samples without it"),
        (["sample", "--run", "RUN", "--onnx"], "package onnx, which is not installed; `pip install onnx`"),
        (["export", "--run", "RUN"], "the package onnx"),
        (["train"], "the package psutil"),
        (["completion", "bash"], "the package shtab"),
    ],
)
def test_what_else_is_missing_is_one_line(command: list[str], message: str, trained_run: Path, tmp_path: Path) -> None:
    words = [str(trained_run) if word == "RUN" else word for word in command]
    done = run_for_sampling(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

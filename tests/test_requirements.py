"""The lists of packages in requirements/ agree with pyproject.toml and constraints.txt."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_sampling_imports_nothing_else(trained_run: Path, tmp_path: Path) -> None:
    """Sample a .onnx file with every package blocked that requirements/sampling.txt does not bring."""
    import charformer

    file = tmp_path / "model.onnx"
    charformer.load(trained_run).export(file)
    script = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {sorted(ABSENT)!r}:
            return self.finder.find_spec(name, path, target)
sys.meta_path = [Without(finder) for finder in sys.meta_path]
from charformer.commands import sample
sys.exit(sample.main(["--onnx", {str(file)!r}, "--max-new-tokens", "5", "--seed", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 6

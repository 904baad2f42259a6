"""Run the real commands beside other packages and files that are called kernels or export."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = "open('it-ran', 'w').close()\n"


def run(command: str, *flags: str, cwd: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    words = [sys.executable, "-m", f"charformer.commands.{command}", *flags]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("command", ["sample --onnx", "export", "train --data text.txt"])
@pytest.mark.parametrize(
    "name",
    ["export.py", "export/__init__.py", "export/exporter.py", "kernels.py", "kernels/__init__.py", "kernels/cpu/x"],
)
def test_a_users_own_files_are_named_and_not_run(name: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RUNS, "utf-8")
    process = run(*command.split(), cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    named = path.parent if path.name == "x" else path
    assert f": {named} hides charformer's own {ROOT}" in process.stderr
    assert "rename it" in process.stderr
    assert not (tmp_path / "it-ran").exists()


def test_a_users_folders_with_other_files_do_no_harm(tmp_path: Path) -> None:
    for name in ("kernels", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(RUNS, "utf-8")
    assert "there is no run" in run("export", cwd=tmp_path).stderr


def test_another_package_hides_a_checkout_and_is_named(tmp_path: Path) -> None:
    found = tmp_path / "site-packages" / "kernels" / "__init__.py"
    found.parent.mkdir(parents=True)
    found.write_text("", "utf-8")
    process = run("sample", cwd=tmp_path, path=os.pathsep.join([str(ROOT), str(found.parents[1])]))
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert f"{found} hides charformer's own {ROOT / 'kernels'}" in process.stderr
    assert "without -e" in process.stderr


def test_another_package_shares_the_folder_of_a_wheel(tmp_path: Path) -> None:
    """pip puts the files of both packages into one folder, with the other package's __init__.py."""
    site = tmp_path / "site-packages"
    for name in ("kernels", "charformer", "export"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__", "onnxruntime-web"))
    (site / "kernels" / "__init__.py").write_text("THEIRS = 1\n", "utf-8")
    assert "there is no run" in run("export", cwd=tmp_path, path=str(site)).stderr
    script = "import kernels, kernels.ops; print(kernels.THEIRS, kernels.ops.__file__)"
    words = [sys.executable, "-c", script]
    shown = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.stdout.split() == ["1", str(site / "kernels" / "ops.py")]


def test_our_folders_have_no_init() -> None:
    """An __init__.py would replace the other package's, and transformers would mistake ours for theirs."""
    assert [name for name in ("kernels", "export", "bench") if (ROOT / name / "__init__.py").exists()] == []

"""The house rules that DESIGN draws: what imports what, and what does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for room in ("kernels", "charformer", "export", "bench") for path in sorted((ROOT / room).rglob("*.py"))
]
ORDER = ["kernels", "charformer", "export", "charformer.commands", "bench"]
WITHOUT_TORCH = (
    "batches config corpus display download errors onnx_engine onnx_file parallel plots rotary rundir runlock "
    "sampling signals speculation standins vocab commands.export commands.sample commands.train"
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import, which hides how far it reaches"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int | None:
    rooms = [index for index, room in enumerate(ORDER) if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=lambda index: len(ORDER[index])) if rooms else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reaches_up(path: Path) -> None:
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        other = floor(module)
        assert other is None or other <= own, f"imports {module}"


def test_sampling_and_mistakes_do_without_torch() -> None:
    modules = [f"charformer.{name}" for name in WITHOUT_TORCH.split()]
    modules += [f"export.{path.stem}" for path in (ROOT / "export").glob("*.py")]
    script = "import sys; [__import__(name) for name in sys.argv[1:]]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, *modules], cwd=ROOT).returncode == 0


def test_no_pickle_is_ever_read() -> None:
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert not any(word in text for word in ("pickle", "torch.load", "torch.save", "allow_pickle=True")), path

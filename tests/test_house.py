"""Test the house rules: which modules import which, what works without torch, and what the docs name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for room in ("kernels", "charformer", "export", "bench") for path in sorted((ROOT / room).rglob("*.py"))
]
FRONT = ROOT / "charformer" / "__init__.py"  # lists the names of charformer.api, and imports them when they are used
# A module imports from its own line and from those before it.
ORDER = [
    ["kernels"],
    [
        "charformer",
        "charformer.errors",
        "charformer.files",
        "charformer.config",
        "charformer.packages",
        "charformer.presets",
        "charformer.threads",
    ],
    ["charformer.device"],
    ["charformer.data", "charformer.model"],
    ["charformer.runs"],
    ["charformer.sampling", "charformer.ui"],
    ["charformer.training"],
    ["export"],
    ["charformer.api", "charformer.api_train", "charformer.commands"],
    ["bench"],
]
# Rooms on one line that must not import each other.
APART = [("charformer.data", "charformer.model"), ("charformer.sampling", "charformer.ui")]
WITHOUT_TORCH = (
    "api threads config data.corpus data.download data.ngram data.ngram_counts data.sources data.vocab errors files "
    "packages presets model.rotary runs.folder runs.listing runs.lock runs.metrics runs.model_card runs.tensors "
    "sampling.engine sampling.onnx_engine sampling.onnx_format "
    "sampling.sampler sampling.scoring sampling.speculation sampling.stopping "
    "training.distributed training.signals ui.console ui.plots "
    "ui.training_display commands.export commands.sample commands.train"
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


def place(module: str) -> tuple[int, str] | None:
    """Return the line of ``ORDER`` and the room that a module belongs to."""
    rooms = [(line, room) for line, rooms in enumerate(ORDER) for room in rooms if f"{module}.".startswith(f"{room}.")]
    return max(rooms, key=lambda found: len(found[1])) if rooms else None


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path != FRONT], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_reaches_up(path: Path) -> None:
    line, room = place(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        other = place(module)
        assert other is None or other[0] <= line, f"imports {module}"
        assert other is None or not any({room, other[1]} == set(pair) for pair in APART), f"imports {module}"


def test_sampling_and_mistakes_do_without_torch() -> None:
    modules = [f"charformer.{name}" for name in WITHOUT_TORCH.split()]
    modules += [f"export.{path.stem}" for path in (ROOT / "export").glob("*.py")]
    script = "import sys; [__import__(name) for name in sys.argv[1:]]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, *modules], cwd=ROOT).returncode == 0


def test_the_front_page_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); import charformer; print(*(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in shown.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "charformer"
    }


def test_no_pickle_is_ever_read() -> None:
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert not any(word in text for word in ("pickle", "torch.load", "torch.save", "allow_pickle=True")), path


def test_the_library_speaks_of_arguments_and_not_of_flags() -> None:
    """The library's messages name arguments, which the commands replace with flags (``UserError.with_flags``)."""
    for path in SOURCES:
        room = str(path.relative_to(ROOT))
        if room.startswith(("bench/", "charformer/commands/", "kernels/checks/")):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
                and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                text = re.sub(r"(?m)(`|^)(charformer-|pip )[^`\n]*|torchrun's --", "", node.value)
                assert not re.search(r"(?<![\w-])--[a-z]", text), f"{room}:{node.lineno} says {node.value!r}"


def test_comments_name_documents_that_are_here() -> None:
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text("utf-8")
        for name in re.findall(r"(?<![\w/])(?:docs/[a-z/_-]+\.md|[A-Z]{4,}\.md)", text):
            assert (ROOT / name).is_file(), f"{path} names {name}"
        assert path == Path(__file__) or "DESIGN" not in text, path


def test_the_walks_stop_at_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    walks = page.partition("## Three walks")[2].partition("\n## ")[0].split("\n**")[1:]
    assert len(walks) == 3
    for walk in walks:
        stops = re.findall(r"^\d\. `([\w/.]+):(\w+)`", walk, re.MULTILINE)
        assert len(stops) <= 8
        assert len(stops) == len(re.findall(r"^\d\. ", walk, re.MULTILINE))
        for file, name in stops:
            assert re.search(rf"(def|class) {name}\b", (ROOT / file).read_text("utf-8")), f"{file} has no {name}"


def test_every_room_is_drawn() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## Three walks")[0]
    rooms = {path.parent.relative_to(ROOT) for path in SOURCES}
    for room in rooms - {Path("bench"), Path("export/page")}:
        assert f"{room.name}/" in page, f"docs/architecture.md does not name {room}"


def test_docs_name_files_that_are_here() -> None:
    here = {path.name for path in (ROOT / "tests").rglob("*.py")}
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"]:
        text = page.read_text("utf-8")
        for name in re.findall(
            r"`((?:tests|charformer|kernels|bench|export|docs)/[\w/.-]+\.(?:py|md|json|csv))`", text
        ):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
        for name in re.findall(r"`(test_\w+\.py)`", text):
            assert name in here, f"{page.name} names {name}"

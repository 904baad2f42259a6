"""Test the page in a real Chromium, from a file and from a server: its text and everything that a user can do."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bench.harness.chromium import EXECUTABLE, Tab, chromium
from charformer.commands import export, sample
from charformer.config import ModelConfig
from charformer.data.ngram_counts import build, count
from charformer.data.vocab import Vocab
from charformer.runs.folder import RunDir
from charformer.runs.tensors import write_tensors

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="there is no Chromium on this machine: apt install chromium")

READY = "['hidden', 'disabled'].every((state) => document.getElementById('write')?.[state] === false)"
TEXT = "document.getElementById('text').textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.fixture(scope="module")
def learned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with learned positions and heads of a width that the fused graph pads."""
    return random_run(tmp_path_factory.mktemp("learned"), ModelConfig(2, 2, 36, block_size=16, vocab_size=9))


@pytest.fixture(scope="module")
def one_character_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose context is a single character, of which nothing is kept when it is full."""
    return random_run(tmp_path_factory.mktemp("one"), ModelConfig(1, 2, 32, block_size=1, vocab_size=9))


@pytest.fixture(scope="module")
def ngram_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with an n-gram prior and a context that slides."""
    config = ModelConfig(2, 2, 32, block_size=16, vocab_size=9, rope_base=100.0, relu_power=2, ngram_order=4)
    return random_run(tmp_path_factory.mktemp("ngram"), config)


def random_run(folder: Path, config: ModelConfig) -> Path:
    """Return a run with random weights and counts, and without a text for a draft."""
    run, vocab, random = RunDir(folder), Vocab("\nabcdefgh"), np.random.default_rng(0)
    shapes = config.weight_shapes().items()
    tensors = {name: random.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes}
    run.write_config({"model": config.to_dict(), "corpus": {"name": "random"}})
    run.write_vocab(vocab)
    write_tensors(run.weights, tensors, {})
    if config.ngram_order:
        text = random.zipf(1.5, size=2000) % len(vocab)
        run.write_ngram(build(count(text, len(vocab), config.ngram_order), min_gain=0))
    return folder


@pytest.fixture(scope="module")
def made(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run's page in 32 bits, beside its .onnx file; in fewer bits, rounding differs between processors."""
    return make_page(trained_run, tmp_path_factory.mktemp("made"), "fp32")


@pytest.fixture
def page(made: Path, tab: Tab) -> Tab:
    """Return a tab with the page and its initial settings; only its text may be another test's."""
    if tab.run("location.href") != made.as_uri():
        tab.open(made.as_uri())
        tab.wait(READY)
    tab.run("document.getElementById('form').reset(); document.getElementById('settings').open = false; scrollTo(0, 0)")
    return tab


def make_page(run: Path, folder: Path, precision: str) -> Path:
    flags = ["--run", str(run), "--out", str(folder / "m.onnx"), "--precision", precision]
    assert export.main([*flags, "--html", str(folder / "m.html")]) == 0
    return folder / "m.html"


def fill(tab: Tab, **fields: object) -> None:
    for name, value in fields.items():
        tab.run(f"document.getElementById({name.replace('_', '-')!r}).value = {json.dumps(str(value))}")


def write(tab: Tab, **fields: object) -> str:
    fill(tab, **fields)
    tab.run("document.getElementById('write').click()")
    tab.wait(READY)
    return tab.run(TEXT)


def command_text(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert sample.main(["--onnx", str(path.with_suffix(".onnx")), *flags]) == 0
    return capsys.readouterr().out


def assert_quiet(tab: Tab) -> None:
    assert tab.errors == []
    assert all(url.startswith(("file:", "http://127.0.0.1", "blob:", "data:")) for url in tab.requests), tab.requests


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"seed": 7}, ["--seed", "7"]),
        (
            {"seed": 2**64 - 1, "prompt": "def f(", "temperature": 0.7, "top_k": 9, "top_p": 0.9},
            ["--seed", str(2**64 - 1), "--prompt", "def f(", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.9"],
        ),
        ({"seed": 1, "temperature": 0, "length": 60}, ["--temperature", "0", "--max-new-tokens", "60"]),
    ],
)
def test_a_double_click_gives_the_commands_text(
    fields: dict[str, object], flags: list[str], page: Tab, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = command_text(made, capsys, *flags)
    assert write(page, **fields) == wanted
    assert len(wanted) > 500 or "length" in fields
    assert_quiet(page)


def test_a_server_gives_the_same(made: Path, tab: Tab, capsys: pytest.CaptureFixture[str]) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(made.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(f"http://127.0.0.1:{server.server_port}/m.html")
        tab.wait(READY)
        assert write(tab, seed=7) == command_text(made, capsys, "--seed", "7")
        server.shutdown()
    assert_quiet(tab)


@pytest.mark.parametrize(
    ("run", "precision", "characters"),
    [
        ("trained_run", "int8", 40),  # rounding changes a character only after some hundreds
        ("trained_run", "int4", 40),
        ("learned_run", "fp32", 300),
        ("learned_run", "int8", 20),
        ("one_character_run", "fp32", 100),
        ("ngram_run", "fp32", 300),
        ("ngram_run", "int8", 20),
    ],
)
def test_other_graphs(
    run: str,
    precision: str,
    characters: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tab: Tab,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make_page(request.getfixturevalue(run), tmp_path, precision)
    tab.open(made.as_uri())
    tab.wait(READY)
    wanted = command_text(made, capsys, "--seed", "3", "--max-new-tokens", str(characters))
    assert write(tab, seed=3, length=characters) == wanted
    assert_quiet(tab)


def test_it_writes_at_once(made: Path, tab: Tab) -> None:
    tab.open(made.as_uri())
    tab.wait(READY)
    assert len(tab.run(TEXT)) == 501
    assert tab.run("performance.getEntriesByName('first character').length") == 1
    assert "500 characters, 500 at " in tab.run("document.getElementById('status').textContent")


def test_stop_and_continue(page: Tab) -> None:
    fill(page, length=100_000, seed=5)
    page.run("document.getElementById('write').click()")
    page.wait(f"{TEXT}.length > 50")
    assert page.run("document.getElementById('write').hidden")
    page.run("document.getElementById('stop').click()")
    page.wait(READY)
    first = page.run(TEXT)
    assert 50 < len(first) < 100_000
    fill(page, length=40)
    page.run("document.getElementById('continue').click()")
    page.wait(READY)
    longer = page.run(TEXT)
    assert longer.startswith(first)
    assert len(longer) == len(first) + 40
    assert_quiet(page)


def test_continued_text_is_that_of_one_go(page: Tab) -> None:
    whole = write(page, seed=9, length=90)
    write(page, seed=9, length=60)
    fill(page, length=30)
    page.run("document.getElementById('continue').click()")
    page.wait(READY)
    assert page.run(TEXT) == whole


def test_a_text_ends_before_a_stop_and_continues_after_it(page: Tab) -> None:
    whole = write(page, seed=4, length=400, prompt="def")
    stop = whole[3:].split(" ")[3][:2]  # where it stands first is looked for below
    end = whole.index(stop, 3)
    assert write(page, seed=4, length=400, prompt="def", stop_text=stop) == whole[:end]
    fill(page, stop_text="", length=10)
    page.run("document.getElementById('continue').click()")
    page.wait(READY)
    longer = page.run(TEXT)
    assert longer == whole[: len(longer)]
    assert len(longer) >= end + len(stop) + 10
    assert "\n" in whole[3:]
    assert write(page, seed=4, length=400, prompt="def", stop_text="\\n") == whole[: whole.index("\n")]


def test_characters_that_the_model_never_saw(page: Tab) -> None:
    assert write(page, prompt="dé中f", length=1)[:2] == "df"
    said = page.run("document.getElementById('unknown').textContent")
    assert said == "Left out, since the model never saw them: é (U+00E9), 中 (U+4E2D)"
    write(page, prompt="", length=1)
    assert page.run("document.getElementById('unknown').textContent") == ""


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1}, {"temperature": ""}, {"top_p": 1.5}, {"seed": "x"}, {"seed": 2**64}, {"length": 1.5}],
)
def test_a_mistake_is_said_and_nothing_is_written(fields: dict[str, object], page: Tab) -> None:
    before = page.run(TEXT)
    fill(page, **fields)
    page.run("document.getElementById('write').click()")
    assert page.run("document.activeElement.matches(':invalid') && document.activeElement.validationMessage.length > 0")
    assert page.run("document.getElementById('settings').open")
    assert page.run(TEXT) == before
    assert_quiet(page)


def press(page: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def resize(page: Tab, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1}
    page.call("Emulation.setDeviceMetricsOverride", mobile=width < 700, **size)


def test_what_a_character_might_have_been_by_keyboard(page: Tab) -> None:
    text = write(page, prompt="def", seed=2, length=30, temperature=1)
    page.run("document.getElementById('text').focus()")
    for _ in range(3):
        press(page, "ArrowRight")
    assert page.run("document.getElementById('place').textContent") == "Character 3 of 30"
    picked = page.run("document.querySelector('#choices .picked .character').textContent")
    assert picked == {" ": "␣", "\n": "↵"}.get(text[5], text[5])
    shares = page.run("[...document.querySelectorAll('#choices .share')].map((one) => one.textContent)")
    assert len(shares) in (8, 9)
    assert 0 < sum(float(share.strip("<% ")) for share in shares) <= 101
    press(page, "End")
    assert page.run("document.getElementById('place').textContent") == "Character 30 of 30"
    assert " of " in page.run("document.getElementById('heard').textContent")


@pytest.mark.parametrize(("key", "wanted"), [("Home", 1), ("End", 30), ("ArrowRight", 1), ("ArrowLeft", 30)])
def test_the_first_key_on_a_text(key: str, wanted: int, page: Tab) -> None:
    write(page, seed=2, length=30)
    page.run("document.getElementById('text').focus()")
    press(page, key)
    assert page.run("document.getElementById('place').textContent") == f"Character {wanted} of 30"


def test_what_a_character_might_have_been_by_pointer(page: Tab) -> None:
    resize(page, 1200)
    write(page, prompt="def f", length=40, seed=2, temperature=1)
    box = page.run(
        """(() => { const range = document.createRange(), node = document.getElementById('text').firstChild;
        range.setStart(node, 5 + 6); range.setEnd(node, 5 + 7); range.startContainer.parentElement.scrollIntoView();
        const { left, top, width, height } = range.getClientRects()[0];
        return [left + width * 0.8, top + height / 2]; })()"""
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    assert page.run("document.getElementById('place').textContent") == "Character 7 of 40"


def test_every_control_has_a_name_for_screen_readers(page: Tab) -> None:
    page.run("document.getElementById('settings').open = true")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "spinbutton", "checkbox", "region", "image", "heading", "DisclosureTriangle")
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert all(name for _, name in found), found
    names = {name for _, name in found}
    assert names >= {
        "Prompt",
        "Length",
        "Temperature",
        "Top-k",
        "Top-p",
        "Seed",
        "Write",
        "Continue",
        "Text",
        "The run",
    }
    assert any(role == "image" and "Validation falls from" in name for role, name in found)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_every_screen(width: int, page: Tab) -> None:
    resize(page, width)
    page.run("document.getElementById('settings').open = true; document.getElementById('next').click()")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("innerWidth") == width
    assert len(page.call("Page.captureScreenshot")["data"]) > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str, page: Tab) -> None:
    """Every text has a contrast of at least 4.5, as WCAG 2.2 requires (level AA)."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    ratios = page.run(
        """(() => { const style = getComputedStyle(document.documentElement);
        const light = (name) => { const value = style.getPropertyValue(name).trim().slice(1);
          const parts = [0, 2, 4].map((at) => parseInt(value.slice(at, at + 2), 16) / 255);
          const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const grounds = ['--paper', '--card'], marks = ['--surprise-1', '--surprise-2', '--surprise-3'];
        const pairs = ['--ink', '--quiet', '--accent'].flatMap((text) => grounds.map((ground) => [text, ground]));
        pairs.push(...marks.map((mark) => ['--ink', mark]), ['--on-accent', '--accent']);
        return pairs.map(([a, b]) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
          return [a, b, (x + 0.05) / (y + 0.05)]; }); })()"""
    )
    assert all(ratio >= 4.5 for _, _, ratio in ratios), ratios


def test_a_browser_that_cannot_run_it_says_so(made: Path, tab: Tab) -> None:
    script = tab.call("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.DecompressionStream")
    tab.open(made.as_uri())
    tab.wait("document.getElementById('alert')?.hidden === false")
    assert "The model cannot run here" in tab.run("document.getElementById('alert').textContent")
    tab.call("Page.removeScriptToEvaluateOnNewDocument", **script)

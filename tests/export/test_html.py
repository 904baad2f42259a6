"""Test the page that --html writes without a browser: its content, and its arithmetic in node against NumPy's."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from charformer.commands import export as command
from charformer.config import ModelConfig
from charformer.data import corpus
from charformer.data.ngram_counts import build, count
from charformer.data.vocab import Vocab
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description
from charformer.sampling.sampler import SamplingConfig, gumbel_noise, pick
from charformer.sampling.speculation import PriorDraft
from export import runtime
from export.html import ASSETS, MODULES, ngram_bytes, script

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")


def element(page: str, name: str) -> str:
    found = re.search(rf'<script type="[^"]*" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


def unpacked(page: str, name: str) -> bytes:
    return gzip.decompress(base64.b64decode(element(page, name), validate=True))


@pytest.fixture(scope="module")
def made(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a .onnx file and its page."""
    folder = tmp_path_factory.mktemp("page")
    flags = ["--run", str(trained_run), "--out", str(folder / "m.onnx"), "--html", str(folder / "m.html")]
    assert command.main(flags) == 0
    return folder / "m.onnx", (folder / "m.html").read_text("utf-8")


def test_the_page_holds_the_runtime_as_published_and_the_model(made: tuple[Path, str]) -> None:
    path, page = made
    for name, file in (("runtime-script", runtime.SCRIPT), ("runtime-wasm", runtime.WASM)):
        assert hashlib.sha256(unpacked(page, name)).hexdigest() == runtime.SHA256[file]
    whole, held = (ort.InferenceSession(content) for content in (path.read_bytes(), unpacked(page, "model")))
    config = OnnxEngine(path).description.config
    feed: dict[str, Any] = {"ids": np.array([[1, 2, 3]]), "positions": np.arange(3)}
    feed |= {"lengths": np.array([2], np.int32), "total": np.array(3, np.int32)}
    for entry in whole.get_inputs():
        if entry.name.startswith("past_"):
            feed[entry.name] = np.zeros((1, *entry.shape[1:]), np.float32)
    assert np.array_equal(whole.run(["logits"], feed)[0], held.run(["logits"], feed)[0])
    description = json.loads(element(page, "description"))
    assert description["model"] == config.to_dict()
    assert [row["step"] for row in description["losses"]] == [0, 20, 40]


def test_the_page_says_what_the_run_was(made: tuple[Path, str]) -> None:
    _, page = made
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["Text"] == "docs.txt, 40,000 characters"
    assert facts["Model"].startswith("2 blocks, 2 heads, 32 wide, context 24, ")
    assert facts["Trained"] == "40 steps, 7,680 characters"
    assert "<title>docs</title>" in page


def test_nothing_in_the_page_is_fetched_from_elsewhere(made: tuple[Path, str]) -> None:
    _, page = made
    assert "default-src 'none'" in page
    own = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="([^"]+)"', own) == [
        "data:,",
        "https://github.com/microsoft/onnxruntime/blob/main/LICENSE",  # followed by a click alone
    ]


def test_a_name_cannot_break_out_of_the_page(trained_run: Path, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(trained_run, copy.path)
    values = json.loads(copy.config.read_text("utf-8"))
    values["corpus"]["name"] = "</title><script>alert(1)</script>$model"
    copy.config.write_text(json.dumps(values), encoding="utf-8")
    assert command.main(["--run", str(copy.path), "--html", str(tmp_path / "m.html")]) == 0
    page = (tmp_path / "m.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;$model</title>" in page


def test_what_cannot_be_made_is_said_before_the_work(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.onnx")
    for flags, message in (
        (["--precision", "fp16"], "--html does not go with --precision fp16"),
        (["--portable"], "--html does not go with --portable"),
        (["--html", str(tmp_path)], "is not a file; --html"),
        (["--html", str(tmp_path / "no" / "m.html")], "there is no folder"),
    ):
        assert command.main(["--run", str(trained_run), "--out", out, "--html", str(tmp_path / "m.html"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    for name, text in (
        ("letter.txt", "Dear"),
        ("index.html", "<!doctype html>\n<title>Trains and charformers</title>"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert command.main(["--run", str(trained_run), "--out", out, "--html", str(tmp_path / name)]) == 2
        assert "exists and is not a page of ours" in capsys.readouterr().err
        assert (tmp_path / name).read_text("utf-8") == text


def test_a_page_and_its_file_have_two_names(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for flags in (["--out", str(tmp_path / "m"), "--html", f"{run}/../m"], ["--html", str(run / "model.onnx")]):
        assert command.main(["--run", str(run), *flags]) == 2
        assert "is the name of the .onnx file; choose another --html" in capsys.readouterr().err
        assert not Path(flags[-1]).exists()


def test_a_page_of_the_last_weights_says_what_they_were(trained_run: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained_run, run.path)
    rows = run.read_metrics()
    rows[1]["val_loss"] = 0.5
    for kept, weights, wanted in ((3, "best", "20"), (3, "last", "40"), (2, "last", None)):
        run.write_metrics(rows[:kept])
        assert command.main(["--run", str(run.path), "--weights", weights, "--html", str(tmp_path / "m.html")]) == 0
        facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", (tmp_path / "m.html").read_text("utf-8")))
        assert facts.get("Trained", "").partition(" ")[0] == (wanted or "")
        assert ("Validation" in facts) == (wanted is not None)


def test_a_run_that_diverged_or_says_little(trained_run: Path, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(trained_run, copy.path)
    values = json.loads(copy.config.read_text("utf-8"))
    values["corpus"] = {"name": 3, "characters": "many"}
    del values["preset"], values["stage"]
    copy.config.write_text(json.dumps(values), encoding="utf-8")
    rows = copy.read_metrics()
    rows[1]["val_loss"] = float("nan")
    copy.write_metrics(rows)
    for _ in range(2):  # the second replaces the first
        assert command.main(["--run", str(copy.path), "--html", str(tmp_path / "m.html")]) == 0
    page = (tmp_path / "m.html").read_text("utf-8")
    assert [row["step"] for row in json.loads(element(page, "description"))["losses"]] == [0, 40]
    assert "<dt>Text</dt><dd>3</dd>" in page


def test_json_has_the_sizes(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "m.html"
    flags = ["--run", str(trained_run), "--out", str(tmp_path / "m.onnx"), "--html", str(page), "--json"]
    assert command.main(flags) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["html"]
    assert found["path"] == str(page)
    assert found["bytes"] == page.stat().st_size > found["model_bytes"] + found["runtime_bytes"]


def test_a_runtime_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package.tgz").write_bytes(b"another package")
    with pytest.raises(ValueError, match="has the SHA-256"):
        runtime.unpack(tmp_path / "package.tgz")


def test_all_modules_are_in_the_script() -> None:
    assert {path.stem for path in ASSETS.glob("*.js")} == set(MODULES)
    assert "\nimport " not in script()
    assert "\nexport " not in script()
    assert "</script" not in script()


def in_node(folder: Path, code: str, value: Any) -> Any:
    """Return the result of an expression of the page's modules for ``value``, as JSON."""
    shutil.copytree(ASSETS, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    names = {
        "noise": "Noise",
        "draft": "Draft, PriorDraft",
        "ngram": "NgramTable",
        "stop": "StopText",
        "vocab": "Vocab",
    }
    imports = [f'import {{ {name} }} from "./{module}.js";' for module, name in names.items()]
    imports += ['import * as sampler from "./sampler.js"; import { readFileSync } from "node:fs";']
    main = f'const value = JSON.parse(readFileSync(0, "utf8")); console.log(JSON.stringify(({code})(value)));'
    (folder / "main.js").write_text("\n".join([*imports, main]), encoding="utf-8")
    done = subprocess.run(
        ["node", "main.js"], cwd=folder, input=json.dumps(value), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**53 + 1, 2**64 - 1])
def test_noise_is_numpys(seed: int, tmp_path: Path) -> None:
    positions = [0, 1, 499, 2**31 + 5, 2**40]
    for vocab_size in (1, 65, 96):
        code = "({ seed, positions, size }) => positions.map((at) => [...new Noise(BigInt(seed), size).row(at)])"
        found = in_node(tmp_path, code, {"seed": str(seed), "positions": positions, "size": vocab_size})
        wanted = [gumbel_noise(seed, 0, position, 1, vocab_size)[0] for position in positions]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


@needs_node
def test_characters_are_picked_as_numpy_picks_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = np.round(random.normal(size=(200, 30)) * 3, 1).astype(np.float32)  # many are equal
    noise = random.gumbel(size=(200, 30))
    code = """({ logits, noise, settings }) => logits.map((row, at) =>
        sampler.pick(sampler.scaledLogits(row, settings), settings.temperature ? noise[at] : null))"""
    for temperature, top_k, top_p in (
        (1.0, None, None),
        (0.7, 5, None),
        (1.3, None, 0.8),
        (0.9, 7, 0.5),
        (0.0, 3, 0.5),
    ):
        settings = {"temperature": temperature, "topK": top_k, "topP": top_p}
        found = in_node(tmp_path, code, {"logits": logits.tolist(), "noise": noise.tolist(), "settings": settings})
        assert found == pick(logits, noise, SamplingConfig(1, temperature, top_k or 0, top_p or 1.0)).tolist()


@needs_node
def test_alternatives_are_probabilities(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=20).astype(np.float32)
    settings = {"temperature": 0.5, "topK": 3, "topP": None}
    code = "({ logits, settings }) => sampler.alternatives(sampler.scaledLogits(logits, settings), 4)"
    found = in_node(tmp_path, code, {"logits": logits.tolist(), "settings": settings})
    best = np.argsort(-logits)[:3]
    wanted = np.exp(logits[best].astype(np.float64) / 0.5)
    assert [pair[0] for pair in found] == [*best.tolist(), *([4] if 4 not in best else [])]
    np.testing.assert_allclose([pair[1] for pair in found[:3]], wanted / wanted.sum(), rtol=1e-12)


@needs_node
def test_the_table_proposes_what_the_commands_does(made: tuple[Path, str], text_file: Path, tmp_path: Path) -> None:
    path, page = made
    description = OnnxEngine(path).description
    draft = description.draft
    assert draft is not None
    ids = description.vocab.encode(corpus.load(str(text_file)).alphabet * 3)
    noise = np.random.default_rng(0).gumbel(size=(4, len(description.vocab)))
    held = json.loads(element(page, "description"))["draft"]
    code = """({ table, held, size, contexts, noise, temperature }) => {
        const draft = new Draft(Uint8Array.from(table), held, size);
        return contexts.map((context) => draft.propose(context, noise, temperature));
    }"""
    contexts = [ids[:length].tolist() for length in range(1, 60)]
    value = {"table": list(unpacked(page, "draft")), "held": held, "size": len(description.vocab)}
    for temperature in (1.0, 0.5, 0.0):
        found = in_node(
            tmp_path, code, value | {"contexts": contexts, "noise": noise.tolist(), "temperature": temperature}
        )
        assert found == [draft.propose(context, noise, temperature) for context in contexts]


@needs_node
@pytest.mark.parametrize(("vocab_size", "order"), [(11, 3), (130, 5), (2, 8)])
def test_counting_says_what_the_commands_table_says(vocab_size: int, order: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = random.zipf(1.5, size=3000) % vocab_size
    table = build(count(text, vocab_size, order), min_gain=0)
    assert table.order == order
    description = Description(ModelConfig(vocab_size=vocab_size), Vocab("\n"), "fp32", False, "", None, table)
    contexts = [text[end - length : end].tolist() for end in (900, 2000) for length in range(1, 12)]
    contexts += [random.integers(vocab_size, size=9).tolist() for _ in range(50)]
    code = """({ content, sizes, size, contexts }) => {
        const table = new NgramTable(Uint8Array.from(content), sizes, size), row = new Float32Array(size);
        return contexts.map((context) => { table.fill(row, context, context.length); return [...row]; });
    }"""
    sizes = {"contexts": len(table.arrays["children"]), "ngrams": len(table)}
    value = {"content": list(ngram_bytes(description)), "sizes": sizes, "size": vocab_size, "contexts": contexts}
    found = np.array(in_node(tmp_path, code, value), np.float32)
    np.testing.assert_allclose(found, [table.row(context) for context in contexts], rtol=3e-7)


@needs_node
def test_the_prior_proposes_what_the_commands_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = random.zipf(1.5, size=3000) % 30
    table = build(count(text, 30, 5), min_gain=0)
    description = Description(ModelConfig(vocab_size=30), Vocab("\n"), "fp32", False, "", None, table)
    contexts = [text[end - length : end].tolist() for end in (900, 2000) for length in range(1, 12)]
    noise = random.gumbel(size=(4, 30))
    code = """({ content, sizes, contexts, noise, temperature }) => {
        const draft = new PriorDraft(new NgramTable(Uint8Array.from(content), sizes, 30), 5);
        return contexts.map((context) => draft.propose(context, noise, temperature));
    }"""
    sizes = {"contexts": len(table.arrays["children"]), "ngrams": len(table)}
    value = {"content": list(ngram_bytes(description)), "sizes": sizes, "contexts": contexts, "noise": noise.tolist()}
    for temperature in (1.0, 0.5, 0.0):
        found = in_node(tmp_path, code, value | {"temperature": temperature})
        assert found == [PriorDraft(table).propose(context, noise, temperature) for context in contexts]


@needs_node
def test_a_stop_text_ends_a_text(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cases = [
        ["".join(random.choice(["a", "b"], size=size)) for size in (random.integers(0, 30), random.integers(0, 6))]
        for _ in range(300)
    ]
    code = """(cases) => cases.map(([text, stop]) => {
        const found = new StopText(stop), items = Array.from(text, (character) => ({ character }));
        const shown = [];
        while (items.length && !found.isReached) shown.push(...found.push(items.splice(0, 3)));
        return [shown, found.isReached ? [] : found.held].flat().map(({ character }) => character).join("");
    })"""
    assert in_node(tmp_path, code, cases) == [text.partition(stop)[0] if stop else text for text, stop in cases]


@needs_node
def test_prompts_are_encoded_as_the_vocabulary_does(tmp_path: Path) -> None:
    code = """(codes) => { const vocab = new Vocab(codes);
        return [vocab.encode("b\\r\\na\\u{1F600}\\u00e9a"), vocab.opening, vocab.decode([3, 0])]; }"""
    found = in_node(tmp_path, code, [ord(character) for character in "\nab😀"])
    assert found == [{"ids": [2, 0, 1, 3, 1], "unknown": ["é"]}, [0], "😀\n"]

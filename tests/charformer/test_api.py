"""Test the library as a Python program uses it."""

import json
import logging
import math
import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import charformer
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run with a model.onnx in 32 bits."""
    path = tmp_path_factory.mktemp("api") / "run"
    shutil.copytree(trained_run, path)
    charformer.load(path).export(path / "model.onnx", precision="fp32")
    return path


@pytest.fixture(scope="module", params=["torch", "onnx", "file"])
def model(request: pytest.FixtureRequest, folder: Path) -> charformer.Model:
    if request.param == "file":
        return charformer.load(folder / "model.onnx")
    return charformer.load(folder, engine=request.param)


def test_names_are_found_lazily_and_listed() -> None:
    assert set(dir(charformer)) >= {"load", "Model", "Score", "UserError"}
    assert charformer.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        charformer.lode  # noqa: B018


def test_generate_stream_and_batch_agree(model: charformer.Model, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"max_new_tokens": 80, "temperature": 0.8, "top_k": 20, "seed": 7}
    text = model.generate("The ", **options)
    assert len(text) == 80
    assert "".join(model.stream("The ", **options)) == text
    batch = model.generate_batch("The ", 3, **options)
    assert batch[0] == text
    assert len(set(batch)) == 3
    assert model.generate("The ", **options | {"seed": 8}) != text
    assert model.generate("", max_new_tokens=5, seed=1) == model.generate("\r\n", max_new_tokens=5, seed=1)
    assert capsys.readouterr() == ("", "")


def test_every_engine_writes_the_same_text(folder: Path) -> None:
    options = {"max_new_tokens": 200, "seed": 3}
    texts = {charformer.load(folder, engine=engine).generate("The ", **options) for engine in ("torch", "onnx")}
    texts.add(charformer.load(folder / "model.onnx", speculative=False).generate("The ", **options))
    assert len(texts) == 1


def test_a_text_ends_before_a_stop(model: charformer.Model) -> None:
    options = {"max_new_tokens": 300, "seed": 2}
    whole = model.generate("The ", **options)
    stopped = model.generate("The ", **options, stop=["\r\n", "zq"])
    assert stopped == whole.partition("\n")[0] != whole
    assert model.generate_batch("The ", 2, **options, stop="\n")[0] == stopped


def test_streams_of_one_model_do_not_disturb_each_other(model: charformer.Model) -> None:
    options = {"max_new_tokens": 40, "seed": 5}
    alone = [model.generate(prompt, **options) for prompt in ("The ", "An ")]
    streams = [model.stream(prompt, **options) for prompt in ("The ", "An ")]
    together = ["", ""]
    for pieces in zip(*streams, strict=True):
        together = [text + piece for text, piece in zip(together, pieces, strict=True)]
    assert together == alone
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(model.generate("The ", **options))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone[0]] * 4


def reference(folder: Path, text: str, prompt: str) -> list[float]:
    """Return the nats of each character from the model itself: the first window, then half a context at a time."""
    net, vocab = load_model(RunDir(folder))
    size = net.config.block_size
    ids = vocab.encode(prompt + text)
    costs = [math.nan] * len(ids)
    start = 0
    while math.isnan(costs[-1]):
        window = torch.from_numpy(ids[start : start + size + 1])
        with torch.no_grad():
            rows = torch.log_softmax(net.eval().double()(window[None, :-1])[0], dim=-1)
        for place in range(1, len(window)):
            if math.isnan(costs[start + place]):
                costs[start + place] = -float(rows[place - 1, window[place]])
        start += size // 2
    return costs[len(prompt) :]


@pytest.mark.parametrize("length", [1, 2, 23, 24, 25, 36, 37, 100])
@pytest.mark.parametrize("prompt", ["T", "The assertion of a statement is much longer than the context."])
def test_a_score_is_the_models_own_loss(
    length: int, prompt: str, model: charformer.Model, folder: Path, english: str
) -> None:
    text = english[1000 : 1000 + length]
    score = model.score(text, prompt)
    expected = np.array(reference(folder, text, prompt))
    np.testing.assert_allclose(score.per_character, expected, atol=2e-4)
    assert score.nats == pytest.approx(expected.mean(), abs=1e-4)
    assert score.bits == pytest.approx(expected.mean() / math.log(2), abs=2e-4)
    assert score.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-3)


def test_an_empty_text_has_no_score(model: charformer.Model) -> None:
    score = model.score("")
    assert len(score.per_character) == 0
    assert math.isnan(score.nats)


def spoilt_last(run: Path) -> None:
    """Make the last weights different from the best."""
    tensors, metadata = read_tensors(run / "last.safetensors")
    write_tensors(run / "last.safetensors", {name: 2 * array for name, array in tensors.items()}, metadata)


def test_the_last_weights_are_others(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    spoilt_last(run)
    best, last = (charformer.load(run, weights=which) for which in ("best", "last"))
    text = "The last of them"
    assert last.score(text).nats != pytest.approx(best.score(text).nats, rel=0.01)
    last.export(run / "last.onnx", precision="fp32")
    assert charformer.load(run / "last.onnx").score(text).nats == pytest.approx(last.score(text).nats, abs=1e-3)
    # the run's own export follows the weights that are asked for
    for which, wanted in (("best", best), ("last", last), ("best", best)):
        found = charformer.load(run, engine="onnx", weights=which)
        assert found.score(text).nats == pytest.approx(wanted.score(text).nats, rel=0.02)


def test_what_is_exported_is_logged_and_nothing_is_printed(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    with caplog.at_level(logging.INFO, "charformer"):
        charformer.load(run, engine="onnx")
    assert "there is no such file yet" in caplog.text
    assert capfd.readouterr() == ("", "")
    before = (run / "model.onnx").stat().st_mtime_ns
    charformer.load(run, engine="onnx")
    assert (run / "model.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda run: charformer.load(run / "nowhere"), "there is no run in"),
        (lambda run: charformer.load(""), "`path` is an empty name"),
        (lambda run: charformer.load(run / "nowhere.onnx"), "cannot read"),
        (lambda run: charformer.load(run, engine="jax"), "`engine` is 'jax'; it must be one of auto, torch, onnx"),
        (lambda run: charformer.load(run, weights="worst"), "`weights` is 'worst'"),
        (lambda run: charformer.load(run, dtype="int3"), "`dtype` is 'int3'"),
        (lambda run: charformer.load(run, threads=0), "`threads` is 0"),
        (lambda run: charformer.load(run / "model.onnx", threads=-1), "`threads` is -1"),
        (lambda run: charformer.load(run, engine="onnx", device="cuda"), "`device` and `dtype` are for PyTorch"),
        (lambda run: charformer.load(run / "model.onnx", dtype="bfloat16"), "`device` and `dtype` are for PyTorch"),
        (lambda run: charformer.load(run, provider="cuda"), "`provider` is for onnxruntime"),
        (lambda run: charformer.load(run / "model.onnx", engine="torch"), "one file for onnxruntime"),
        (lambda run: charformer.load(run / "model.onnx", weights="last"), "one file for onnxruntime"),
        (lambda run: charformer.load(run).stream(temperature=-1), "`temperature` is -1"),  # before the first piece
        (lambda run: charformer.load(run).stream(stop=["a", ""]), "`stop` is an empty text"),
        (lambda run: charformer.load(run).generate("\U0001f4a5"), r"U\+1F4A5"),
        (lambda run: charformer.load(run).score("\U0001f4a5"), r"U\+1F4A5"),
        (lambda run: charformer.load(run).generate_batch("", 0), "`num_samples` is 0"),
        (lambda run: charformer.load(run / "model.onnx").export(run / "x.onnx"), "is an export already"),
        (lambda run: charformer.load(run).export(run / "x.onnx", precision="int2"), "`precision` is 'int2'"),
    ],
)  # fmt: skip
def test_mistakes(call, named: str, folder: Path) -> None:
    with pytest.raises(UserError, match=named):
        call(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_nothing_is_exported_for_it(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    with pytest.raises(UserError, match="finds no CUDA"):
        charformer.load(run, engine="onnx", provider="cuda")
    assert not (run / "model.onnx").exists()


def test_an_error_knows_its_arguments_and_a_command_their_flags() -> None:
    error = UserError("`max_steps` is 0, see `charformer-train --help` and runs/`out put`; lower `batch_size`")
    assert error.fields == ["max_steps", "batch_size"]
    assert error.with_flags({"max_steps": "--steps", "batch_size": "--batch-size"}.__getitem__) == (
        "--steps is 0, see `charformer-train --help` and runs/`out put`; lower --batch-size"
    )


def test_a_model_says_where_it_came_from(folder: Path) -> None:
    found = charformer.load(folder)
    assert (found.path, found.precision, found.weights) == (folder, "float32", "best")
    assert found.config.block_size == 24
    assert isinstance(found.vocab, Vocab)
    assert charformer.load(folder / "model.onnx").precision == "fp32"
    assert list(islice(found.stream(seed=1), 3)) == list(found.generate(max_new_tokens=3, seed=1))
    assert json.loads((folder / "vocab.json").read_text("utf-8")) == found.vocab.to_dict()

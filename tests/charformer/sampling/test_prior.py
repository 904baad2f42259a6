"""Test the rows of an n-gram table for texts that grow, and files with a wrong table."""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy

from bench.engines.sampling_models import random_run
from charformer.config import ModelConfig
from charformer.data.ngram import NgramTable
from charformer.data.ngram_counts import build, count
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import read_metadata, sealed, unsealed
from charformer.sampling.prior import GrowingPrior
from charformer.sampling.sampler import SamplingConfig, generate
from charformer.sampling.speculation import PriorDraft, speculate
from export.exporter import export

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, rope_base=100.0, vocab_size=9, ngram_order=4)


@pytest.fixture(scope="module")
def table() -> NgramTable:
    return build(count(np.random.default_rng(0).integers(9, size=3000), 9, 4), min_gain=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run(tmp_path_factory.mktemp("runs") / "prior", CONFIG)


def expected(table: NgramTable, text: np.ndarray) -> np.ndarray:
    """Return the rows after every character of (B, T) texts."""
    return np.array([[table.row(row[: end + 1]) for end in range(len(row))] for row in text.tolist()])


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_texts_that_grow_have_the_rows_of_whole_ones(batch: int, table: NgramTable) -> None:
    text = np.random.default_rng(1).integers(9, size=(batch, 230))
    wanted, prior = expected(table, text), GrowingPrior(table)
    for before in (0, 2, 40):
        prior.begin(text[:, :before])
        place = before
        for size in (1, 1, 3, 100, 1, 5, 1, 60, 1, 1):
            found = prior.extend(text[:, place : place + size])
            np.testing.assert_array_equal(found, wanted[:, place : place + size])
            place += size


def test_forgotten_characters_leave_no_trace(table: NgramTable) -> None:
    text = np.random.default_rng(2).integers(9, size=(1, 300))
    wanted, prior = expected(table, text), GrowingPrior(table)
    prior.begin(text[:, :3])
    place = 3
    for _ in range(60):
        prior.extend(np.concatenate([text[:, place : place + 2], 8 - text[:, place + 2 : place + 5]], axis=1))
        prior.rewind(3)
        place += 2
        np.testing.assert_array_equal(prior.extend(text[:, place : place + 1])[:, 0], wanted[:, place])
        place += 1


def test_a_table_without_contexts_is_one_row() -> None:
    prior = GrowingPrior(build(count(np.arange(9), 9, 4), min_count=2))
    prior.begin(np.zeros((2, 0), np.int64))
    np.testing.assert_allclose(prior.extend(np.zeros((2, 5), np.int64)), 1 / 9)
    np.testing.assert_allclose(prior.extend(np.zeros((2, 50), np.int64)), 1 / 9)


def test_a_file_holds_its_table_and_is_out_of_date_when_that_changes(run: RunDir, tmp_path: Path) -> None:
    export(run, tmp_path / "m.onnx", "fp32", portable=False, corpus=None)
    description = OnnxEngine(tmp_path / "m.onnx").description
    table, mine = run.read_ngram(CONFIG), description.ngram
    assert table is not None
    assert mine is not None
    assert all(np.array_equal(mine.arrays[name], table.arrays[name]) for name in table.arrays)
    assert json.loads(description.to_metadata()["charformer"])["format"] == 3
    before = run.weights_sha256()
    assert description.weights_sha256 == before
    run.write_ngram(build(count(np.arange(200) % 9, 9, 4)))
    assert run.weights_sha256() != before
    run.write_ngram(table)
    assert run.weights_sha256() == before


def test_a_model_without_a_prior_is_written_as_before(tmp_path: Path) -> None:
    plain = random_run(tmp_path / "plain", ModelConfig(1, 2, 16, 24, vocab_size=9))
    export(plain, tmp_path / "m.onnx", "fp32", portable=False, corpus=None)
    metadata = read_metadata(unsealed((tmp_path / "m.onnx").read_bytes()))
    assert metadata.keys() == {"charformer", "draft"}
    values = json.loads(metadata["charformer"])
    assert values["format"] == 2
    assert "ngram_order" not in values["model"]
    assert not plain.ngram.exists()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_the_prior_proposes_what_its_rows_and_the_noise_pick(temperature: float, table: NgramTable) -> None:
    random, draft = np.random.default_rng(3), PriorDraft(table)
    for length in (1, 2, 7, 30):
        context, noise = random.integers(9, size=length).tolist(), random.gumbel(size=(5, 9))
        text = list(context)
        for row in noise:
            probabilities = table.rows(np.array([[-1] * 4 + text])[:, -4:])[0].astype(np.float64)
            text.append(int(np.argmax(np.log(probabilities) / temperature + row if temperature else probabilities)))
        assert draft.propose(context, noise, temperature) == text[length:]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 5}], ids=str)
def test_speculation_from_the_prior_writes_the_plain_text(
    settings: dict[str, float], run: RunDir, tmp_path: Path
) -> None:
    export(run, tmp_path / "m.onnx", "fp32", portable=False, corpus=None)
    engine = OnnxEngine(tmp_path / "m.onnx")
    assert engine.description.draft is None
    assert isinstance(engine.description.proposer, PriorDraft)
    config, prompt = SamplingConfig(max_new_tokens=600, seed=3, **settings), np.array([1, 2])
    plain = np.concatenate(list(generate(engine, prompt, 1, config)))
    fewer = np.concatenate(list(speculate(engine, engine.description.proposer, prompt, config)))
    np.testing.assert_array_equal(plain, fewer)


def packed(arrays: dict[str, np.ndarray]) -> str:
    return base64.b64encode(zlib.compress(safetensors.numpy.save(arrays))).decode()


def test_tables_that_are_not_ours_are_refused(run: RunDir, table: NgramTable, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(run, path, "fp32", portable=True, corpus=None)
    content = unsealed(path.read_bytes())
    longer = build(count(np.random.default_rng(0).integers(9, size=3000), 9, 6), min_gain=0)
    for text in (
        "!!!",
        base64.b64encode(b"nothing compressed").decode(),
        base64.b64encode(zlib.compress(b"no tensors")).decode(),
        packed(table.arrays | {"characters": table.arrays["characters"].astype(np.float32)}),
        packed(table.arrays | {"children": table.arrays["children"] + np.uint16(1)}),
        packed({"characters": table.arrays["characters"]}),
        packed(longer.arrays),
        None,
    ):
        model = onnx.load_from_string(content)
        metadata = {entry.key: entry.value for entry in model.metadata_props} | ({"ngram": text} if text else {})
        if text is None:
            del metadata["ngram"]
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(sealed(model.SerializeToString()))
        with pytest.raises(UserError, match=r"n-gram|its description is damaged"):
            OnnxEngine(path)


def test_a_run_s_table_must_fit_its_model(run: RunDir, tmp_path: Path) -> None:
    other = random_run(tmp_path / "other", CONFIG)
    other.ngram.unlink()
    with pytest.raises(UserError, match=r"there is no .*ngram\.safetensors"):
        other.read_ngram(CONFIG)
    other.write_ngram(build(count(np.random.default_rng(0).integers(50, size=3000), 50, 3)))
    with pytest.raises(UserError, match="n-gram table"):
        other.read_ngram(CONFIG)
    other.write_ngram(build(count(np.random.default_rng(0).integers(9, size=3000), 9, 6), min_gain=0))
    with pytest.raises(UserError, match="longer contexts"):
        other.read_ngram(CONFIG)

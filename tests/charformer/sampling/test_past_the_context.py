"""Test each engine far past the context, where learned positions read half of it again and rotary ones slide."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.engines.sampling_models import random_run
from charformer.config import ModelConfig
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, generate
from charformer.sampling.torch_engine import TorchEngine
from export.exporter import export
from export.verify import reference_logits
from tests.charformer.model.test_gpt import naive_logits

LEARNED = ModelConfig(n_layer=2, n_head=2, n_embd=24, block_size=24, vocab_size=13)
ROTARY = replace(LEARNED, rope_base=100.0, relu_power=2)
CONFIGS = {
    "learned": LEARNED,
    "rotary": ROTARY,
    "learned, prior": replace(LEARNED, ngram_order=5),
    "rotary, prior": replace(ROTARY, ngram_order=3),
}
ROTARIES = pytest.mark.parametrize("positions", ["rotary", "rotary, prior"])
POSITIONS = pytest.mark.parametrize("positions", CONFIGS)
ENGINES = pytest.mark.parametrize("engine", ["torch", "fused", "portable"])

Make = Callable[[str, str], TorchEngine | OnnxEngine]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    found = {name: random_run(folder / name, config) for name, config in CONFIGS.items()}
    for run in found.values():
        for layout in ("fused", "portable"):
            export(run, run.path / f"{layout}.onnx", "fp32", layout == "portable", corpus=None)
    return found


@pytest.fixture
def make(runs: dict[str, RunDir]) -> Make:
    def build(engine: str, positions: str) -> TorchEngine | OnnxEngine:
        run = runs[positions]
        if engine == "torch":
            model = load_model(run)[0]
            return TorchEngine(model, torch.device("cpu"), ngram=run.read_ngram(model.config))
        return OnnxEngine(run.path / f"{engine}.onnx")

    return build


def banded(run: RunDir, ids: np.ndarray) -> np.ndarray:
    """Return the naive model's logits in float64 over whole texts, in which each character sees ``block_size``."""
    model, _ = load_model(run)
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    return naive_logits(weights, model.config, torch.from_numpy(ids), prior_of(run, ids)).numpy()


def prior_of(run: RunDir, ids: np.ndarray) -> torch.Tensor | None:
    """Return rows of the run's table, (B, T, V) in float64, looked up one by one."""
    table = run.read_ngram(run.read_shape()[0])
    if table is None:
        return None
    rows = [[table.row(text[: end + 1]) for end in range(len(text))] for text in ids.tolist()]
    return torch.tensor(np.array(rows, np.float64))


@ENGINES
@ROTARIES
@pytest.mark.parametrize("prompt", [1, 10, 24])
def test_rotary_positions_slide_as_under_a_banded_mask(
    engine: str, prompt: int, positions: str, make: Make, runs: dict[str, RunDir]
) -> None:
    ids = np.random.default_rng(prompt).integers(13, size=(3, 150))
    wanted = banded(runs[positions], ids)
    whole = naive_logits(
        {name: tensor.double() for name, tensor in load_model(runs[positions])[0].state_dict().items()},
        replace(CONFIGS[positions], block_size=150),
        torch.from_numpy(ids),
        prior_of(runs[positions], ids),
    ).numpy()
    assert np.abs(wanted - whole)[:, 30:].max() > 0.01, "the band changes nothing"
    mine = make(engine, positions)
    np.testing.assert_allclose(mine.start(ids[:, :prompt]), wanted[:, prompt - 1], atol=2e-5)
    for place in range(prompt, 150):
        np.testing.assert_allclose(mine.extend(ids[:, [place]])[:, 0], wanted[:, place], atol=2e-5)


@ROTARIES
@pytest.mark.parametrize("layout", ["fused", "portable"])
def test_several_characters_at_once_slide_too_and_can_be_forgotten(
    layout: str, positions: str, make: Make, runs: dict[str, RunDir]
) -> None:
    ids = np.random.default_rng(0).integers(13, size=(1, 300))
    wanted = banded(runs[positions], ids)
    mine = make(layout, positions)
    assert isinstance(mine, OnnxEngine)
    mine.start(ids[:, :1])
    place, sizes = 1, np.random.default_rng(1)
    while place < 280:
        count = int(sizes.integers(1, 9))
        assert count <= mine.room
        found = mine.extend(ids[:, place : place + count])
        np.testing.assert_allclose(found, wanted[:, place : place + count], atol=2e-5)
        forgotten = int(sizes.integers(count))
        mine.rewind(forgotten)
        place += count - forgotten


@ROTARIES
def test_the_reference_of_an_export_slides_too(positions: str, runs: dict[str, RunDir]) -> None:
    run, ids = runs[positions], np.random.default_rng(0).integers(13, size=(2, 100))
    config, _ = run.read_shape()
    found = reference_logits(config, run.read_weights(config)[0], ids, run.read_ngram(config))
    np.testing.assert_allclose(found, banded(run, ids), atol=1e-6)  # the naive rotations are float32


@pytest.mark.parametrize("layout", ["fused", "portable"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("positions", ["learned", "learned, prior"])
def test_learned_positions_read_half_again(layout: str, positions: str, batch: int, make: Make) -> None:
    ours, theirs = make(layout, positions), make("torch", positions)
    generator = np.random.default_rng(0)
    for prompt in (1, 5, 24, 40):
        ids = generator.integers(13, size=(batch, prompt))
        np.testing.assert_allclose(ours.start(ids), theirs.start(ids), atol=1e-4)
        for _ in range(48):
            new = generator.integers(13, size=(batch, 1))
            np.testing.assert_allclose(ours.extend(new), theirs.extend(new), atol=1e-4)


@POSITIONS
@pytest.mark.parametrize("layout", ["fused", "portable"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_of_many_contexts_are_pytorch_s(layout: str, temperature: float, positions: str, make: Make) -> None:
    config = SamplingConfig(max_new_tokens=300, temperature=temperature, seed=5, top_k=0 if temperature else 3)
    ours, theirs = (
        np.concatenate(list(generate(make(engine, positions), np.array([3]), 1, config)))
        for engine in (layout, "torch")
    )
    np.testing.assert_array_equal(ours, theirs)

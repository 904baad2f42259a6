from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.data.vocab import Vocab
from charformer.data.windows import Windows
from charformer.model.freeze import freeze
from charformer.model.gpt import GPT
from charformer.training import evaluation
from charformer.training.distributed import ONE_PROCESS
from charformer.training.evaluation import Evaluator, subset_starts

CPU = torch.device("cpu")
MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=20, dropout=0.1)
TRAIN_CONFIG = TrainConfig(batch_size=8, eval_batches=3)


def frozen_model(data: Path, what: str, rope_base: float = 0.0) -> GPT:
    torch.manual_seed(0)
    model = GPT(replace(MODEL, vocab_size=len(corpus.load(str(data)).alphabet), rope_base=rope_base))
    freeze(model, what)
    return model


def evaluator_of(
    model: GPT, data: Path, dtype: torch.dtype = torch.float32, train_config: TrainConfig = TRAIN_CONFIG
) -> Evaluator:
    text = corpus.load(str(data))
    return Evaluator(model, text, Windows(text.table(Vocab.of(text.alphabet)), CPU), train_config, dtype, ONE_PROCESS)


def passes(model: GPT) -> list[int]:
    """Return a list that gains an item with each pass through the first block."""
    counted: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("even_windows", [0, 1])
def test_the_subset_is_of_windows_from_all_over_a_split(even_windows: int, text_file: Path) -> None:
    model = frozen_model(text_file, "none")
    train_config = replace(TRAIN_CONFIG, even_windows=even_windows)
    evaluator = evaluator_of(model, text_file, train_config=train_config)
    text = corpus.load(str(text_file))
    ids = text.table(Vocab.of(text.alphabet))[text.validation]
    starts = subset_starts(len(ids), 20, train_config, 1)
    spaced = np.linspace(0, len(ids) - 21, 24).astype(int)
    assert np.array_equal(starts, spaced) == bool(even_windows)  # as in older runs that are resumed
    model.double().eval()
    losses = []
    for start in starts:
        log_probabilities = model(torch.from_numpy(ids[None, start : start + 20]))[0].log_softmax(-1)
        losses += [-log_probabilities[t, target].item() for t, target in enumerate(ids[start + 1 : start + 21])]
    model.float()
    assert evaluator.subset_loss("validation") == pytest.approx(np.mean(losses), abs=1e-5)
    assert evaluator.subset_loss("train") != evaluator.subset_loss("validation")


@pytest.mark.parametrize(("characters", "length"), [(22, 20), (481, 20), (501, 20), (502, 20), (5000, 7), (60_000, 20)])
def test_there_is_one_window_in_each_stratum(characters: int, length: int) -> None:
    starts = subset_starts(characters, length, TRAIN_CONFIG, 0)
    assert len(starts) == min(24, (characters - 1) // length)
    assert starts[0] >= 0
    assert starts[-1] + length < characters  # the last target too
    if (characters - 1) // length <= 24:
        assert set(np.diff(starts)) <= {length}  # the whole split
    else:
        strata = np.linspace(0, characters - length, 25)
        assert (strata[:-1].astype(int) <= starts).all()
        assert (starts < strata[1:]).all()
        assert not np.array_equal(starts, subset_starts(characters, length, TRAIN_CONFIG, 1))
    np.testing.assert_array_equal(starts, subset_starts(characters, length, TRAIN_CONFIG, 0))


def test_records_of_one_length_do_not_bias_the_estimate(tmp_path: Path) -> None:
    """If records are as long as the spacing, evenly spaced windows would all show the same part of a record."""
    train_config = TrainConfig(batch_size=400, eval_batches=1)
    validation = 399 * 100 + 21  # evenly spaced windows would be 100 apart
    for period in range(96, 106):
        record = "a" * (period // 2) + "b" * (period - period // 2 - 1) + "\n"
        path = tmp_path / f"{period}.txt"
        path.write_text((record * 5000)[70 : 70 + 10 * validation], encoding="utf-8", newline="")
        model = frozen_model(path, "none")
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([0.0, 0.6, 0.0]))  # a window of \n, a or b has its own loss
        evaluator = evaluator_of(model, path, train_config=train_config)
        whole = evaluator.whole_loss(lambda *_: None)
        assert evaluator.subset_loss("validation") == pytest.approx(whole, abs=0.03), period
        if period == 100:
            even = evaluator_of(model, path, train_config=replace(train_config, even_windows=1)).subset_loss(
                "validation"
            )
            assert abs(even - whole) > 0.1


@pytest.mark.parametrize("rope_base", [0.0, 10000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_trunk_runs_once_and_the_head_every_time(
    rope_base: float, dtype: torch.dtype, text_file: Path
) -> None:
    model = frozen_model(text_file, "trunk", rope_base)
    evaluator = evaluator_of(model, text_file, dtype)
    counted = passes(model)
    before = [evaluator.subset_loss("train"), evaluator.subset_loss("validation")]
    first = len(counted)
    assert first > 2
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    after = [evaluator.subset_loss("train"), evaluator.subset_loss("validation")]
    assert len(counted) == first
    assert all(abs(a - b) > 1e-3 for a, b in zip(after, before, strict=True))
    freeze(model, "attention")
    anew = evaluator_of(model, text_file, dtype)
    exact = 1e-6 if dtype == torch.float32 else 2e-4
    assert after == pytest.approx([anew.subset_loss("train"), anew.subset_loss("validation")], abs=exact)


@pytest.mark.parametrize("what", ["none", "attention"])
def test_blocks_that_train_are_passed_every_time(what: str, text_file: Path) -> None:
    model = frozen_model(text_file, what)
    evaluator = evaluator_of(model, text_file)
    before = evaluator.subset_loss("validation")
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc.weight").mul_(2.0)
    assert evaluator.subset_loss("validation") != before


def test_a_subset_that_is_too_large_is_not_kept(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus.load(str(text_file))
    windows = sum(min(24, (len(ids) - 1) // 20) for ids in (text.train, text.validation))
    for most, kept in ((4 * windows * 20 * 32, True), (4 * windows * 20 * 32 - 1, False)):
        monkeypatch.setattr(evaluation, "MAX_KEPT", most)
        model = frozen_model(text_file, "trunk")
        evaluator = evaluator_of(model, text_file)
        counted = passes(model)
        evaluator.subset_loss("train")
        first = len(counted)
        evaluator.subset_loss("train")
        assert (len(counted) == first) == kept


def test_a_long_split_is_scored_on_a_fixed_subset(text_file: Path) -> None:
    evaluator = evaluator_of(frozen_model(text_file, "none"), text_file)
    seen: list[tuple[int, int]] = []
    whole = evaluator.whole_loss(lambda *_: None)
    part = evaluator.whole_loss(lambda *counts: seen.append(counts), most=2000)
    assert seen[-1] == (2000, 2000)
    assert part == evaluator.whole_loss(lambda *_: None, most=2000) != whole
    assert part == pytest.approx(whole, abs=0.02)
    assert evaluator.whole_loss(lambda *_: None, most=1_000_000) == whole
    ((starts, length),) = evaluator.score_pieces(2000)
    assert (starts[0] < 40, starts[-1] > 3900, length) == (True, True, 20)

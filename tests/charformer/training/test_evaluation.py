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
from charformer.training.distributed import ALONE
from charformer.training.evaluation import Evaluator

CPU = torch.device("cpu")
MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=20, dropout=0.1)
COURSE = TrainConfig(batch_size=8, eval_batches=3)


def frozen_model(data: Path, what: str, rope_base: float = 0.0) -> GPT:
    torch.manual_seed(0)
    model = GPT(replace(MODEL, vocab_size=len(corpus.load(str(data)).alphabet), rope_base=rope_base))
    freeze(model, what)
    return model


def evaluator_of(model: GPT, data: Path, dtype: torch.dtype = torch.float32) -> Evaluator:
    text = corpus.load(str(data))
    return Evaluator(model, text, Windows(text.table(Vocab.of(text.alphabet)), CPU), COURSE, dtype, ALONE)


def passes(model: GPT) -> list[int]:
    """A list that grows by 1 with each pass through the first block."""
    counted: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_the_subset_is_of_evenly_spaced_windows(text_file: Path) -> None:
    model = frozen_model(text_file, "none")
    evaluator = evaluator_of(model, text_file)
    text = corpus.load(str(text_file))
    ids = text.table(Vocab.of(text.alphabet))[text.validation]
    starts = np.linspace(0, len(ids) - 21, min(24, (len(ids) - 1) // 20)).astype(int)
    model.double().eval()
    losses = []
    for start in starts:
        log_probabilities = model(torch.from_numpy(ids[None, start : start + 20]))[0].log_softmax(-1)
        losses += [-log_probabilities[t, target].item() for t, target in enumerate(ids[start + 1 : start + 21])]
    model.float()
    assert evaluator.subset_loss("validation") == pytest.approx(np.mean(losses), abs=1e-5)
    assert evaluator.subset_loss("train") != evaluator.subset_loss("validation")


@pytest.mark.parametrize("rope_base", [0.0, 10000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_trunk_is_passed_once_and_the_head_is_read_anew(
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
        model.get_parameter("blocks.0.mlp.fc.weight").add_(1.0)
    assert evaluator.subset_loss("validation") != before


def test_a_subset_that_is_too_large_is_not_kept(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus.load(str(text_file))
    windows = sum(min(24, (len(ids) - 1) // 20) for ids in (text.train, text.validation))
    for most, kept in ((4 * windows * 20 * 32, True), (4 * windows * 20 * 32 - 1, False)):
        monkeypatch.setattr(evaluation, "MOST_KEPT", most)
        model = frozen_model(text_file, "trunk")
        evaluator = evaluator_of(model, text_file)
        counted = passes(model)
        evaluator.subset_loss("train")
        first = len(counted)
        evaluator.subset_loss("train")
        assert (len(counted) == first) == kept

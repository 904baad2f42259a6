"""Test the captured step: that nothing in it waits, anywhere; that it trains like the uncaptured step, on a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.data.vocab import Vocab
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.training.optimizer import Optimizer
from charformer.training.prior import PriorRows
from charformer.training.session import Place, prepare_finetune, prepare_pretrain, prepare_resume
from charformer.training.trainer import Trainer
from tests.kernels.marks import needs_gpu

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, dropout=0.1, attention_dropout=0.1)
MUON = {"rope_base": 10000.0, "relu_power": 2}
TRAINING = TrainConfig(batch_size=4, learning_rate=3e-3, max_steps=50, eval_interval=20, eval_batches=1, grad_clip=1.0)
CUDA = Place(torch.device("cuda"), torch.bfloat16)


class NoWaiting(TorchDispatchMode):
    """A mode that refuses whatever waits for a device: reading a number, or copying from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read in the captured step"
        return func(*args, **(kwargs or {}))


def trainer(text_file: Path, run: Path, model: ModelConfig, training: TrainConfig, place: Place) -> Trainer:
    session = prepare_pretrain(RunDir(run), model, training, "nano", corpus.load(str(text_file)), place)
    session.open()
    return session.trainer


@pytest.mark.parametrize(("by_muon", "ngram_order"), [(False, 0), (True, 0), (True, 3)])
def test_nothing_in_the_captured_step_reads_a_number(
    by_muon: bool, ngram_order: int, text_file: Path, tmp_path: Path
) -> None:
    model = replace(SMALL, **MUON, ngram_order=ngram_order) if by_muon else SMALL
    training = replace(TRAINING, muon_learning_rate=0.02 if by_muon else 0.0, weight_decay=0.1)
    found = trainer(text_file, tmp_path / "run", model, training, Place(torch.device("cpu")))
    # The rates are tensors, as on a GPU.
    for optimizer in (found.optimizer.adamw, found.optimizer.muon) if by_muon else (found.optimizer.adamw,):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    if found.prior is not None:  # rows that are kept, as on a GPU
        found.prior = PriorRows(
            found.prior.tables, found.corpus, Vocab.of(found.corpus.alphabet), 3, found.device, keeps=True
        )
    batch = found.next_batch()
    found.forward_backward_update(*batch)  # makes the optimizer's state
    weight = found.model.blocks[0].mlp.fc.weight
    before = weight.detach().clone()
    with NoWaiting():
        found.forward_backward_update(*batch)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("muon_learning_rate", [0.0, 0.02])
def test_a_rate_in_a_tensor_moves_weights_as_a_float_does(muon_learning_rate: float) -> None:
    moved = []
    for in_tensor in (False, True):
        torch.manual_seed(0)
        weights = torch.nn.ModuleDict(
            {"blocks": torch.nn.ModuleList([torch.nn.Linear(8, 8)]), "head": torch.nn.Linear(8, 8)}
        )
        optimizer = Optimizer(weights, replace(TRAINING, muon_learning_rate=muon_learning_rate))  # type: ignore[arg-type]
        for group in [*optimizer.adamw.param_groups, *(optimizer.muon.param_groups if optimizer.muon else ())]:
            group["lr"] = torch.tensor(0.0) if in_tensor else 0.0
        for step in range(3):
            optimizer.set_learning_rate(0.01 * (step + 1))
            for parameter in weights.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        moved.append([parameter.detach().clone() for parameter in weights.parameters()])
    for by_float, by_tensor in zip(*moved, strict=True):
        torch.testing.assert_close(by_float, by_tensor, atol=1e-6, rtol=1e-5)


def losses(of: Trainer, stop_at: int | None = None) -> list[float]:
    return [float(progress.loss) for progress in of.steps(lambda: of.counters.step == stop_at)]


def uncaptured(of: Trainer) -> Trainer:
    of._captures = False
    return of


@needs_gpu
@pytest.mark.parametrize("preset", ["baseline", "fast"])
@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_captured_steps_train_as_uncaptured_ones(
    preset: str, grad_clip: float, text_file: Path, tmp_path: Path
) -> None:
    chosen = PRESETS[preset]
    model = replace(chosen.model, n_layer=2, block_size=64)
    training = replace(chosen.pretrain, max_steps=50, eval_interval=20, eval_batches=1, grad_clip=grad_clip)
    eager = uncaptured(trainer(text_file, tmp_path / "eager", model, training, CUDA))
    captured = trainer(text_file, tmp_path / "captured", model, training, CUDA)
    assert losses(eager) == losses(captured)  # with evaluations and saves between replays
    assert captured._captured is not None
    for name, tensor in eager.model.state_dict().items():
        assert torch.equal(tensor, captured.model.state_dict()[name]), name


@needs_gpu
def test_a_captured_training_resumes_exactly(text_file: Path, tmp_path: Path) -> None:
    training = replace(TRAINING, muon_learning_rate=0.02)
    whole = trainer(text_file, tmp_path / "whole", replace(SMALL, **MUON), training, CUDA)
    losses(whole)
    half = trainer(text_file, tmp_path / "half", replace(SMALL, **MUON), training, CUDA)
    losses(half, stop_at=25)
    again = prepare_resume(half.run, RunRecord.read(half.run), {}, half.corpus, CUDA)
    again.open()
    losses(again.trainer)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@needs_gpu
@pytest.mark.parametrize("freeze", ["none", "attention", "trunk"])
def test_each_freeze_can_be_captured(freeze: str, trained_run: Path, text_file: Path, tmp_path: Path) -> None:
    text = corpus.load(str(text_file))
    found = []
    for name in ("eager", "captured"):
        run = RunDir(tmp_path / name)
        session = prepare_finetune(run, RunDir(trained_run), TRAINING, "nano", freeze, text, CUDA)
        session.open()
        found.append(losses(uncaptured(session.trainer) if name == "eager" else session.trainer))
    assert found[0] == found[1]


@needs_gpu
def test_a_training_that_cannot_be_captured_says_so_and_trains(
    text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.autograd.set_detect_anomaly(True):
        of = trainer(text_file, tmp_path / "run", SMALL, replace(TRAINING, max_steps=8), CUDA)
        assert len(losses(of)) == 9
    assert of._captured is None
    assert "without a CUDA graph" in caplog.text

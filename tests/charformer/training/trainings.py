"""Small trainings on the CPU, for the tests of this room."""

from pathlib import Path

import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Progress
from charformer.runs.record import RunRecord
from charformer.training.session import Place, TrainingSession, prepare_finetune, prepare_pretrain, prepare_resume
from charformer.training.trainer import Trainer

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=20, dropout=0.1)
TRAIN_CONFIG = TrainConfig(
    batch_size=8, learning_rate=3e-3, max_steps=12, eval_interval=4, eval_batches=2, grad_clip=1.0
)
CPU = torch.device("cpu")


def pretrain(
    data: Path, folder: Path, config: TrainConfig = TRAIN_CONFIG, dtype: torch.dtype = torch.float32
) -> Trainer:
    text = corpus.load(str(data))
    return opened(prepare_pretrain(RunDir(folder), MODEL, config, "nano", text, Place(CPU, dtype)))


def finetune(source: Path, data: Path, folder: Path, freeze: str) -> Trainer:
    text = corpus.load(str(data))
    return opened(prepare_finetune(RunDir(folder), RunDir(source), TRAIN_CONFIG, "nano", freeze, text, Place(CPU)))


def opened(session: TrainingSession) -> Trainer:
    session.open()
    return session.trainer


def resumed(trainer: Trainer, run: RunDir | None = None, **changes: float) -> Trainer:
    run = run or trainer.run
    place = Place(CPU, trainer.dtype)
    return opened(prepare_resume(run, RunRecord.read(run), changes, trainer.corpus, place))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def run_all(trainer: Trainer) -> list[Progress]:
    return list(trainer.steps())

import shutil
import threading
from pathlib import Path

import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus
from charformer.errors import WriteError
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.training.saver import Saver
from charformer.training.session import Place, TrainingSession, prepare_pretrain

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=20, dropout=0.1)
TRAINING = TrainConfig(batch_size=4, learning_rate=3e-3, max_steps=12, eval_interval=4, eval_batches=1)


def session(text_file: Path, folder: Path, in_background: bool) -> TrainingSession:
    found = prepare_pretrain(
        RunDir(folder), MODEL, TRAINING, "nano", corpus.load(str(text_file)), Place(torch.device("cpu"))
    )
    found.open()
    found.trainer._saver = Saver(in_background)
    return found


def test_writes_in_the_background_come_in_order_and_of_what_was_copied() -> None:
    saver, tensor, go, seen = Saver(in_background=True), torch.zeros(3), threading.Event(), []
    for number in range(3):
        copy = saver.copy([("weight", tensor)])
        saver.submit(lambda number=number, copy=copy: (go.wait(10), seen.append((number, copy["weight"].tolist()))))
        tensor += 1
    assert seen == []
    go.set()
    saver.join()
    assert seen == [(0, [0.0] * 3), (1, [1.0] * 3), (2, [2.0] * 3)]


def test_a_failed_write_is_raised_later_and_once() -> None:
    saver, done = Saver(in_background=True), threading.Event()

    def fail() -> None:
        try:
            raise WriteError("no space")
        finally:
            done.set()

    saver.submit(fail)
    done.wait(10)
    with pytest.raises(WriteError, match="no space"):
        saver.join()
    saver.check()
    saver.join()


def test_files_are_the_same_whenever_they_are_written(text_file: Path, tmp_path: Path) -> None:
    for name, in_background in (("at once", False), ("later", True)):
        for _ in session(text_file, tmp_path / name, in_background).trainer.steps():
            pass
    for file in ("model.safetensors", "vocab.json"):
        assert (tmp_path / "at once" / file).read_bytes() == (tmp_path / "later" / file).read_bytes()
    assert [row["step"] for row in RunDir(tmp_path / "later").read_metrics()] == [0, 4, 8, 12]
    assert RunDir(tmp_path / "later").state.is_file()


def test_the_best_weights_survive_a_folder_that_is_gone(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = session(text_file, tmp_path / "run", in_background=True)
    trainer = found.trainer
    steps = trainer.steps()
    while next(steps).step < 3:
        pass
    trainer.join_saves()
    shutil.rmtree(found.run.path)
    assert next(steps).evaluation
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(WriteError):
        list(steps)
    assert trainer.counters.best_step == 4
    saved = found.rescue()
    for name, tensor in load_model(saved)[0].state_dict().items():
        assert torch.equal(tensor, weights[name]), name

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.model.gpt import GPT
from charformer.runs import checkpoint
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Counters
from charformer.runs.tensors import read_tensors, write_tensors
from charformer.training.optimizer import Optimizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.1, vocab_size=5)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.write_config({"model": CONFIG.to_dict()})
    run.write_vocab(Vocab("abcde"))
    return run


def test_weights_survive_bit_for_bit(run: RunDir) -> None:
    model = GPT(CONFIG)
    checkpoint.save_weights(run, model.state_dict(), 2, 1.5)
    again, vocab = checkpoint.load_model(run)
    assert vocab.characters == "abcde"
    assert again.config == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("muon_learning_rate", [0.0, 0.02])
def test_a_training_continues_as_if_it_had_never_stopped(muon_learning_rate: float, run: RunDir) -> None:
    def step(number: int, model: GPT, optimizer: Optimizer) -> None:
        torch.manual_seed(number)  # as the trainer does
        ids = torch.randint(5, (4, 8))
        model(ids).logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def build(seed: int) -> tuple[GPT, Optimizer]:
        torch.manual_seed(seed)
        model = GPT(CONFIG)
        return model, Optimizer(model, config)

    config = TrainConfig(weight_decay=0.1, muon_learning_rate=muon_learning_rate)
    first = build(0)
    for number in range(3):
        step(number, *first)
    counters = Counters(step=3, characters=96, best_val_loss=1.5, best_step=2)
    checkpoint.save_state(run, checkpoint.state_tensors(first[0], first[1].state()), counters)
    checkpoint.save_weights(run, first[0].state_dict(), counters.best_step, counters.best_val_loss)
    for number in range(3, 6):
        step(number, *first)
    second = build(1)
    found, state = checkpoint.load_state(run, second[0])
    assert found == counters
    second[1].load_state(state)
    for number in range(3, 6):
        step(number, *second)
    for name, tensor in first[0].state_dict().items():
        assert torch.equal(tensor, second[0].state_dict()[name]), name


def test_what_does_not_fit_is_refused(run: RunDir) -> None:
    with pytest.raises(UserError, match="saved no weights"):
        checkpoint.load_model(run)
    checkpoint.save_weights(run, GPT(CONFIG).state_dict(), 0, 4.0)
    run.write_vocab(Vocab("abc"))
    with pytest.raises(UserError, match="3 characters"):
        checkpoint.load_model(run)
    run.write_vocab(Vocab("abcde"))
    run.write_config({"model": CONFIG.to_dict() | {"n_embd": 32}})
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.load_model(run)
    run.write_config({})
    with pytest.raises(UserError, match="no 'model'"):
        checkpoint.load_model(run)


def test_without_the_best_weights_the_last_ones_serve_and_the_next_become_the_best(run: RunDir) -> None:
    model = GPT(CONFIG)
    checkpoint.save_state(run, checkpoint.state_tensors(model, []), Counters(step=3, best_val_loss=1.5, best_step=2))
    assert checkpoint.load_state(run, model)[0].best_val_loss == float("inf")
    with pytest.raises(
        UserError, match=r"there is no .*model\.safetensors; `charformer-train --resume` with more steps"
    ):
        checkpoint.load_model(run)
    last, _ = checkpoint.load_model(run, "last")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in last.state_dict().items())
    assert len(run.weights_sha256("last")) == 64


@pytest.mark.parametrize("which", ["best", "last"])
def test_weights_that_are_not_finite_are_refused_with_their_file(which: str, run: RunDir) -> None:
    model = GPT(CONFIG)
    checkpoint.save_weights(run, model.state_dict(), 0, 4.0)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    checkpoint.save_state(run, checkpoint.state_tensors(model, []), Counters())
    if which == "best":
        checkpoint.save_weights(run, model.state_dict(), 0, 4.0)
    file = run.weights if which == "best" else run.state
    with pytest.raises(UserError, match=f"head.bias in {re.escape(str(file))} holds values that are not finite"):
        checkpoint.load_model(run, which)


@pytest.mark.parametrize("wrong", ["shape", "dtype", "scalar", "missing", "part missing"])
def test_an_optimizer_s_state_that_does_not_fit_is_refused(wrong: str, run: RunDir) -> None:
    model = GPT(CONFIG)
    optimizer = Optimizer(model, TrainConfig())
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()
    checkpoint.save_state(run, checkpoint.state_tensors(model, optimizer.state()), Counters(step=1))
    tensors, metadata = read_tensors(run.state)
    name = "optimizer.0.exp_avg"
    if wrong == "part missing":
        del tensors["optimizer.0.exp_avg_sq"]
    elif wrong == "missing":
        tensors = {key: array for key, array in tensors.items() if not key.startswith("optimizer.0.")}
    else:
        exp_avg = tensors[name]
        broken = {"shape": exp_avg[:1], "dtype": exp_avg.astype(np.float64), "scalar": exp_avg[0, 0]}
        tensors[name] = np.array(broken[wrong])
    write_tensors(run.state, tensors, {"counters": metadata["counters"]})
    _, state = checkpoint.load_state(run, model)
    before = {name: tensor.clone() for name, tensor in optimizer.state()}
    with pytest.raises(ValueError, match=r"^(its )?optimizer"):
        optimizer.load_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "x"),
        ("step", None),
        ("step", 2.5),
        ("step", -5),
        ("step", True),
        ("characters", []),
        ("train_seconds", None),
        ("train_seconds", float("nan")),
        ("eval_seconds", float("inf")),
        ("best_val_loss", "low"),
    ],
)
def test_counters_that_count_nothing_are_refused(name: str, value: object, run: RunDir) -> None:
    model = GPT(CONFIG)
    optimizer = Optimizer(model, TrainConfig())
    checkpoint.save_state(run, checkpoint.state_tensors(model, optimizer.state()), Counters(step=1))
    assert checkpoint.load_state(run, model)[0].step == 1
    tensors, metadata = read_tensors(run.state)
    counters = json.loads(metadata["counters"]) | {name: value}
    write_tensors(run.state, tensors, {"counters": json.dumps(counters)})
    with pytest.raises(UserError, match=f"cannot be resumed from: its {name} is"):
        checkpoint.load_state(run, model)
    write_tensors(run.state, tensors, {"training": "of an earlier version"})
    with pytest.raises(UserError, match="an earlier version saved it"):
        checkpoint.load_state(run, model)


def test_a_state_without_its_parts_is_refused(run: RunDir) -> None:
    model = GPT(CONFIG)
    with pytest.raises(UserError, match="nothing to resume"):
        checkpoint.load_state(run, model)
    checkpoint.save_weights(run, model.state_dict(), 2, 1.5)
    shutil.copy(run.weights, run.state)
    with pytest.raises(UserError):
        checkpoint.load_state(run, model)

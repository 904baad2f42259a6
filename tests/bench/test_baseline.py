"""Compare the baseline's arithmetic with a few independent lines in float64."""

import numpy as np
import pytest
import torch

from bench.engines import baseline
from bench.engines.baseline import Baseline
from charformer.config import ModelConfig

SMALL = ModelConfig(n_layer=2, n_head=3, n_embd=24, block_size=10, dropout=0.0, attention_dropout=0.0, vocab_size=11)


def logits_of(weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Return the logits of the baseline's model as its page describes it, one sequence and one character at a time."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    x = weights["tokens.weight"][ids] + weights["positions.weight"][: len(ids)]
    for block in (f"blocks.{layer}" for layer in range(SMALL.n_layer)):
        normed, heads = norm(x, f"{block}.ln1"), []
        for head in (f"{block}.heads.{number}" for number in range(SMALL.n_head)):
            q, k, v = (normed @ weights[f"{head}.{name}.weight"].T for name in ("query", "key", "value"))
            out = []
            for place in range(len(ids)):
                scores = k[: place + 1] @ q[place] / np.sqrt(SMALL.n_embd)  # the model's width, not the head's
                shares = np.exp(scores) / np.exp(scores).sum()
                out.append(shares @ v[: place + 1])
            heads.append(np.array(out))
        x = x + np.concatenate(heads, 1) @ weights[f"{block}.proj.weight"].T + weights[f"{block}.proj.bias"]
        hidden = norm(x, f"{block}.ln2") @ weights[f"{block}.mlp.0.weight"].T + weights[f"{block}.mlp.0.bias"]
        x = x + np.maximum(hidden, 0) @ weights[f"{block}.mlp.2.weight"].T + weights[f"{block}.mlp.2.bias"]
    return x @ weights["head.weight"].T + weights["head.bias"]  # no final norm


def test_logits_and_loss_are_the_baselines_arithmetic() -> None:
    torch.manual_seed(0)
    model = Baseline(SMALL).double()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ids = np.random.default_rng(0).integers(SMALL.vocab_size, size=(4, SMALL.block_size + 1))
    wanted = np.stack([logits_of(weights, row[:-1]) for row in ids])
    x, y = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
    np.testing.assert_allclose(model(x).detach().numpy(), wanted, rtol=1e-10, atol=1e-12)
    shares = np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(shares, ids[:, 1:, None], 2))
    assert baseline.loss(model, x, y).item() == pytest.approx(nats.mean(), rel=1e-10)


def test_dropout_is_on_attention_weights_and_on_both_branches() -> None:
    torch.manual_seed(0)
    rates = [
        module.p for module in Baseline(ModelConfig(vocab_size=87)).modules() if isinstance(module, torch.nn.Dropout)
    ]
    assert rates == [0.2] * (6 * (6 + 1 + 1))


def test_batches_are_windows_and_what_follows_each_character() -> None:
    torch.manual_seed(0)
    ids = torch.arange(100)
    x, y = baseline.batch(ids, 50, 10, torch.device("cpu"))
    assert x.shape == y.shape == (50, 10)
    assert (y == x + 1).all()
    assert (x == x[:, :1] + torch.arange(10)).all()
    assert len(x[:, 0].unique()) > 20
    assert x.min() >= 0
    assert y.max() <= 99


def test_the_optimizer_is_adam_as_pytorch_has_it() -> None:
    torch.manual_seed(0)
    model = Baseline(SMALL)
    optimizer = baseline.optimizer(model)
    ids = torch.randint(SMALL.vocab_size, (2, 11))
    before = model.head.bias.detach().double().clone()
    baseline.loss(model, ids[:, :-1], ids[:, 1:]).backward()
    gradient = model.head.bias.grad.double()
    optimizer.step()
    moved = before - 3e-4 * gradient / (gradient.abs() + 1e-8)  # the first step of Kingma & Ba's algorithm 1
    torch.testing.assert_close(model.head.bias.detach().double(), moved, rtol=1e-5, atol=1e-9)

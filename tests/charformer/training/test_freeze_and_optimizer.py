from dataclasses import replace

import pytest
import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.model.freeze import count_parameters, freeze, train_mode
from charformer.model.gpt import GPT
from charformer.training.optimizer import Optimizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.0, attention_dropout=0.0, vocab_size=5)


def trainable(model: GPT) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("none", lambda name: True),
        ("attention", lambda name: "attn" not in name),
        ("trunk", lambda name: name in ("head.weight", "head.bias", "ln_f.weight", "ln_f.bias")),
    ],
)
def test_each_freeze_leaves_what_it_says(what: str, kept) -> None:
    model = GPT(CONFIG)
    freeze(model, what)
    assert trainable(model) == {name for name, _ in model.named_parameters() if kept(name)}
    counts = count_parameters(model)
    assert counts[0] == sum(p.numel() for name, p in model.named_parameters() if kept(name))
    assert sum(counts) == sum(p.numel() for p in model.parameters())


def test_freezing_again_undoes_what_was_frozen_before() -> None:
    model = GPT(CONFIG)
    freeze(model, "trunk")
    freeze(model, "none")
    assert trainable(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("what", "dropout"), [("none", True), ("attention", True), ("trunk", False)])
def test_dropout_acts_unless_the_trunk_is_frozen(what: str, dropout: bool) -> None:
    model = GPT(replace(CONFIG, dropout=0.5))
    freeze(model, what)
    train_mode(model)
    ids = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(model(ids), model(ids)) != dropout


def test_with_the_trunk_frozen_no_backward_runs_through_it() -> None:
    model = GPT(CONFIG)
    freeze(model, "trunk")
    loss = model(torch.zeros(1, 8, dtype=torch.long)).sum()
    nodes, names = [loss.grad_fn], []
    while nodes:
        node = nodes.pop()
        names.append(type(node).__name__)
        nodes += [next_node for next_node, _ in node.next_functions if next_node is not None]
    assert not any("Attention" in name or "Embedding" in name or "Relu" in name for name in names), names
    assert sum("LayerNorm" in name for name in names) == 1
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)


def test_weight_decay_is_for_matrices_that_train() -> None:
    model = GPT(CONFIG)
    freeze(model, "attention")
    optimizer = Optimizer(model, TrainConfig(weight_decay=0.3, beta2=0.9)).adamw
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.3
    assert vectors["weight_decay"] == 0
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert all(p.dim() >= 2 for p in matrices["params"])


def test_the_optimizer_is_adam_where_nothing_decays() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG).double()
    weight = model.head.weight
    optimizer = Optimizer(model, TrainConfig(learning_rate=0.01))
    expected, mean, square = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        gradient = torch.randn_like(weight)
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        expected -= 0.01 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-10, rtol=1e-8)


def muon(model: GPT, **settings: float) -> Optimizer:
    return Optimizer(model, TrainConfig(learning_rate=0.01, muon_learning_rate=0.02, **settings))


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT(CONFIG)
    optimizer = muon(model)
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)]: group["parts"] for group in optimizer.muon.param_groups for p in group["params"]}
    kinds = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")
    assert chosen == {
        f"blocks.{layer}.{kind}.weight": 3 if kind == "attn.qkv" else 1 for layer in range(2) for kind in kinds
    }
    assert len(chosen) + sum(len(group["params"]) for group in optimizer.adamw.param_groups) == len(names)
    optimizer.set_learning_rate(0.005)
    assert {group["lr"] for group in optimizer.adamw.param_groups} == {0.005}
    assert {group["lr"] for group in optimizer.muon.param_groups} == {0.01}


def test_muon_moves_each_matrix_by_its_momentum_s_orthogonal_factor_with_even_rows() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = muon(model, weight_decay=0.1)
    optimizer.set_learning_rate(0.01)
    weights = {name: p for name, p in model.named_parameters() if ".attn." in name or ".mlp." in name}
    weights = {name: p for name, p in weights.items() if p.dim() == 2}
    momentum = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in weights.items()}
    squares: dict[tuple[str, int], torch.Tensor] = {}
    for step_number in range(3):
        before = {name: p.detach().double().clone() for name, p in weights.items()}
        for name, p in weights.items():
            p.grad = torch.randn_like(p)
            gradient = p.grad.double()
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            before[name] = before[name] * (1 - 0.02 * 0.1), 0.05 * gradient + 0.95 * momentum[name]
        optimizer.step()
        for name, p in weights.items():
            start, ahead = before[name]
            parts = 3 if "qkv" in name else 1
            for part, (moved, direction) in enumerate(
                zip((p.detach() - start).chunk(parts), ahead.chunk(parts), strict=True)
            ):
                u, _, vh = torch.linalg.svd(direction, full_matrices=False)
                factor = u @ vh
                rows, columns = direction.shape
                squares[name, part] = 0.95 * squares.get((name, part), 0) + 0.05 * factor.square().mean(1, keepdim=True)
                even = factor / squares[name, part].sqrt()
                even *= factor.norm() / even.norm()
                step = -moved / (0.02 * max(1.0, rows / columns) ** 0.5)
                assert 0.7 < step.norm() / even.norm() < 1.2  # the quintic's band
                assert (step * even).sum() / (step.norm() * even.norm()) > 0.9, name
                if step_number == 0:
                    norms = step.norm(dim=1)
                    assert norms.max() / norms.min() < 1.001

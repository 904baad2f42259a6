"""Compare the model in float64 with a naive one: a linear layer for each head, an explicit mask, no cache."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from charformer.config import ModelConfig
from charformer.model.gpt import GPT, KVCache
from charformer.presets import PRESETS

SMALL = ModelConfig(n_layer=3, n_head=4, n_embd=48, block_size=33, dropout=0.2, vocab_size=23)


def build(config: ModelConfig = SMALL) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).double().eval()
    with torch.no_grad():  # layer norms start as identities, which would hide that two were swapped
        for name, parameter in model.named_parameters():
            if ".ln" in name or name.startswith("ln_f"):
                parameter.add_(torch.randn_like(parameter))
            if name.startswith("ngram_prior.gate"):  # which starts from zero
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(time: int, batch: int = 2, vocab_size: int = SMALL.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (batch, time), generator=torch.Generator().manual_seed(1))


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rotated(x: Tensor, base: float) -> Tensor:
    """Rotate each pair by a 2 x 2 matrix of its own."""
    out, half = x.clone(), x.shape[-1] // 2
    for position in range(x.shape[1]):
        for pair in range(half):
            angle = position * base ** (-pair / half)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).to(x)
            out[:, position, [pair, pair + half]] = x[:, position, [pair, pair + half]] @ turn.T
    return out


def prior_of(tokens: Tensor, vocab_size: int = SMALL.vocab_size) -> Tensor:
    """Return a random distribution of the next character for every position, (B, T, V)."""
    scores = torch.randn(*tokens.shape, vocab_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (3 * scores).softmax(-1)


def naive_logits(
    weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor, prior: Tensor | None = None
) -> Tensor:
    time, width = tokens.shape[1], config.n_embd // config.n_head
    mask = torch.ones(time, time).tril().bool() & ~torch.ones(time, time).tril(-config.block_size).bool()
    x = weights["tok_emb.weight"][tokens]
    if not config.rope_base:
        x = x + weights["pos_emb.weight"][torch.arange(time)]
    if prior is not None:
        x = x + prior.sqrt() @ weights["ngram_prior.input.weight"].T
    for layer in range(config.n_layer):
        at = f"blocks.{layer}"
        h = layer_norm(x, weights, f"{at}.ln1")
        query, key, value = weights[f"{at}.attn.qkv.weight"].split(config.n_embd)
        heads = []
        for head in range(config.n_head):
            rows = slice(head * width, (head + 1) * width)
            q, k, v = h @ query[rows].T, h @ key[rows].T, h @ value[rows].T
            if config.rope_base:
                q, k = (rotated(x, config.rope_base) for x in (q, k))
            scores = (q @ k.mT / math.sqrt(width)).masked_fill(~mask, -math.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ weights[f"{at}.attn.proj.weight"].T + weights[f"{at}.attn.proj.bias"]
        h = layer_norm(x, weights, f"{at}.ln2")
        h = (h @ weights[f"{at}.mlp.fc.weight"].T + weights[f"{at}.mlp.fc.bias"]).clamp(min=0) ** config.relu_power
        x = x + h @ weights[f"{at}.mlp.proj.weight"].T + weights[f"{at}.mlp.proj.bias"]
    h = layer_norm(x, weights, "ln_f")
    logits = h @ weights["head.weight"].T + weights["head.bias"]
    if prior is not None:
        gate = (h @ weights["ngram_prior.gate.weight"].T + weights["ngram_prior.gate.bias"]).exp()
        logits = logits + gate * prior.log()
    return logits


@pytest.mark.parametrize("time", [1, 7, 33])
def test_logits_are_the_naive_model_s(time: int) -> None:
    model, tokens = build(), ids(time)
    expected = naive_logits(dict(model.state_dict()), SMALL, tokens)
    torch.testing.assert_close(model(tokens), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "switches",
    [
        {"rope_base": 50.0},
        {"relu_power": 2},
        {"rope_base": 10000.0, "relu_power": 2},
        {"ngram_order": 3},
        {"rope_base": 50.0, "ngram_order": 6},
    ],
    ids=str,
)
def test_every_switch_is_the_naive_model_s_and_reads_on_from_a_cache(switches: dict[str, float]) -> None:
    config = replace(SMALL, **switches)
    model, tokens = build(config), ids(33)
    prior = prior_of(tokens) if config.ngram_order else None
    expected = naive_logits(dict(model.state_dict()), config, tokens, prior)
    torch.testing.assert_close(model(tokens, None, prior), expected, atol=1e-5, rtol=1e-5)  # rotations are float32
    assert (expected - naive_logits(dict(build().state_dict()), SMALL, tokens)).abs().max() > 1e-2
    cache = KVCache(config, 2, torch.device("cpu"), torch.float64)
    parts = [slice(0, 20), *(slice(place, place + 1) for place in range(20, 33))]
    found = [model(tokens[:, part], cache, None if prior is None else prior[:, part]) for part in parts]
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == config.weight_shapes()


@pytest.mark.parametrize("switches", [{}, {"rope_base": 50.0, "relu_power": 2}, {"ngram_order": 2}], ids=str)
def test_gradients_are_the_naive_model_s(switches: dict[str, float]) -> None:
    config = replace(SMALL, **switches)
    model, tokens = build(config), ids(12)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in model.state_dict().items()}
    prior = prior_of(tokens) if config.ngram_order else None
    naive_logits(weights, config, tokens, prior).logsumexp(-1).sum().backward()
    model(tokens, None, prior).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        tolerance = 1e-4 if config.rope_base else 1e-9  # the rotations are float32
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=tolerance, rtol=tolerance, msg=name)


def test_no_character_sees_a_later_one() -> None:
    model, tokens = build(), ids(20)
    before = model(tokens)
    for changed in (5, 19):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % SMALL.vocab_size
        after = model(other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-12, rtol=0)
        assert (after[:, changed:] - before[:, changed:]).abs().amax(-1).min() > 1e-6


def test_the_baseline_has_its_count_of_parameters() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in GPT(replace(PRESETS[name].model, vocab_size=87)).parameters())
            for name in ("baseline", "baseline-as-coded")
        }
    assert counts == {"baseline": 10_854_999, "baseline-as-coded": 10_756_695}


def test_weights_have_the_contract_s_names() -> None:
    block = ["ln1.weight", "ln1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "ln2.weight"]
    block += ["ln2.bias", "mlp.fc.weight", "mlp.fc.bias", "mlp.proj.weight", "mlp.proj.bias"]
    expected = {"tok_emb.weight", "pos_emb.weight", "ln_f.weight", "ln_f.bias", "head.weight", "head.bias"}
    expected |= {f"blocks.{layer}.{name}" for layer in range(SMALL.n_layer) for name in block}
    assert build().state_dict().keys() == expected


@pytest.mark.parametrize("place", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_alone(place: str) -> None:
    off = replace(SMALL, dropout=0.0, attention_dropout=0.0)
    model, tokens = build(replace(off, **{place: 0.2})), ids(20)
    expected = build(off)(tokens)
    assert torch.equal(model(tokens), expected)
    model.train()
    assert not torch.equal(model(tokens), expected)
    assert torch.equal(build(off).train()(tokens), expected)


def test_a_cache_changes_no_logit() -> None:
    model, tokens = build(), ids(SMALL.block_size)
    expected = model(tokens)
    for prefill in (1, 10, 33):
        cache = KVCache(SMALL, batch=2, device=torch.device("cpu"), dtype=torch.float64)
        parts = [model(tokens[:, :prefill], cache)]
        parts += [model(tokens[:, t : t + 1], cache) for t in range(prefill, SMALL.block_size)]
        assert cache.length == SMALL.block_size
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-10, rtol=1e-10)


def test_an_extended_vocabulary_keeps_old_logits_and_tells_new_characters_apart() -> None:
    model, tokens = build(), ids(20)
    before, embedding = model(tokens), model.tok_emb.weight.clone()
    model.extend_vocab(26, torch.Generator().manual_seed(0))
    assert model.config.vocab_size == 26
    after = model(tokens)
    assert after.shape[-1] == 26
    torch.testing.assert_close(after[..., :23], before, atol=1e-12, rtol=0)
    torch.testing.assert_close(after[..., 23:], before.mean(-1, keepdim=True).expand(-1, -1, 3), atol=1e-10, rtol=0)
    assert torch.equal(model.tok_emb.weight[:23], embedding)
    new = model.tok_emb.weight[23:]
    assert torch.pdist(new).min() > 0
    assert (new - embedding.mean(0)).std() < 0.2 * embedding.std()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_extending_by_nothing_changes_nothing() -> None:
    model, tokens = build(), ids(20)
    before = model(tokens)
    model.extend_vocab(SMALL.vocab_size, torch.Generator().manual_seed(0))
    assert torch.equal(model(tokens), before)


def test_a_prior_s_input_map_keeps_its_columns_and_a_new_character_starts_like_the_others() -> None:
    config = replace(SMALL, ngram_order=4)
    model, tokens = build(config), ids(20)
    prior, columns = prior_of(tokens), build(config).state_dict()["ngram_prior.input.weight"]
    before = model(tokens, None, prior)
    model.extend_vocab(26, torch.Generator().manual_seed(0))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == model.config.weight_shapes()
    widened = torch.cat([prior, prior.new_full((*prior.shape[:2], 3), 1e-300)], -1)
    torch.testing.assert_close(model(tokens, None, widened)[..., :23], before, atol=1e-9, rtol=0)
    found = model.state_dict()["ngram_prior.input.weight"]
    assert torch.equal(found[:, :23], columns)
    assert 0 < (found[:, 23:] - columns.mean(1, keepdim=True)).std() < 0.2 * columns.std()


def test_a_model_with_a_prior_starts_from_it() -> None:
    torch.manual_seed(0)
    model, tokens = GPT(replace(SMALL, ngram_order=4)).double().eval(), ids(20)
    model.zero_init()
    prior = prior_of(tokens)
    torch.testing.assert_close(model(tokens, None, prior).softmax(-1), prior)


def test_without_a_prior_the_weights_are_the_ones_that_they_were() -> None:
    torch.manual_seed(0)
    plain = GPT(SMALL).state_dict()
    torch.manual_seed(0)
    found = GPT(replace(SMALL, ngram_order=4)).state_dict()
    assert found.keys() - plain.keys() == {
        f"ngram_prior.{name}" for name in ("input.weight", "gate.weight", "gate.bias")
    }
    assert all(torch.equal(found[name], plain[name]) for name in plain)

"""Checks an exported file against its checkpoint, by a plain NumPy forward pass in float64."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charformer.config import ModelConfig
from charformer.data.ngram import NgramTable
from charformer.runs.tensors import Tensors
from charformer.sampling.engine import Ids
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, generate
from charformer.sampling.speculation import PROPOSALS

Doubles = NDArray[np.float64]

CHARACTERS = 4096  # on which an export is checked
TIMED = 128  # characters of one text, to measure the file's speed


@dataclass(frozen=True)
class Comparison:
    """The differences between a file and its checkpoint, in logits and nats a character, and the file's speed."""

    characters: int
    max_logit_error: float
    kl: float
    checkpoint_loss: float
    loss: float
    chars_per_second: float


def compare(engine: OnnxEngine, ids: Ids, wanted: Doubles) -> Comparison:
    """Compare the file of ``engine`` with reference logits ``wanted``, (N, T, V), of ``ids``, (N, T + 1).

    T is at most block_size, unless the file's positions are rotary. Windows are read as sampling reads them, since the
    rounding of 8-bit matmuls depends on the number of rows: in turn as speculation does, a character at a time, and
    from a long prompt.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:, None]
    ways = ((1, PROPOSALS + 1), (1, 1), (engine.description.config.block_size, 1))
    found = np.stack([_read(engine, row, *ways[number % 3]) for number, row in enumerate(inputs)])
    log_p, log_q = log_softmax(wanted), log_softmax(found)
    return Comparison(
        characters=targets.size,
        max_logit_error=float(np.abs(found - wanted).max()),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()),
        checkpoint_loss=-float(np.take_along_axis(log_p, targets, axis=-1).mean()),
        loss=-float(np.take_along_axis(log_q, targets, axis=-1).mean()),
        chars_per_second=_speed(engine, inputs[0, :1]),
    )


def _read(engine: OnnxEngine, ids: Ids, prompt: int, at_once: int) -> Doubles:
    """Read a text, (T,), ``prompt`` characters together, then ``at_once`` at a time; return the logits (T, V)."""
    logits = [engine.read(ids[None, :prompt])[0].astype(np.float64)]
    for start in range(prompt, len(ids), at_once):
        logits.append(engine.extend(ids[None, start : start + at_once])[0].astype(np.float64))
    return np.concatenate(logits)


def reference_logits(config: ModelConfig, tensors: Tensors, ids: Ids, ngram: NgramTable | None = None) -> Doubles:
    """Return the logits (N, T, V) of ``ids``, (N, T), in float64: the model of charformer/model/gpt.py, written out.

    T is at most block_size; rotary positions may exceed it, and see the last block_size characters. ``ngram`` is the
    table of a model with a prior, which sees nothing before a window.
    """
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    return np.stack([_window_logits(config, weights, row, ngram) for row in ids])


def _window_logits(
    config: ModelConfig, weights: dict[str, Doubles], ids: Ids, ngram: NgramTable | None = None
) -> Doubles:
    """Return the logits (T, V) of one window, (T,)."""

    def norm(x: Doubles, name: str) -> Doubles:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Doubles, name: str) -> Doubles:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    length = len(ids)
    far = np.arange(length)[:, None] - np.arange(length)
    unseen = np.where((far < 0) | (far >= config.block_size), -np.inf, 0.0)
    x = weights["tok_emb.weight"][ids]
    if not config.rope_base:
        x = x + weights["pos_emb.weight"][:length]
    if ngram is not None:
        text = ids.tolist()
        prior = np.array([ngram.row(text[: end + 1]) for end in range(length)], np.float64)
        x = x + np.sqrt(prior) @ weights["ngram_prior.input.weight"].T
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        qkv = linear(norm(x, f"{block}.ln1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(length, 3, config.n_head, -1).transpose(1, 2, 0, 3)
        if config.rope_base:
            q, k = (_rotated(x, config.rope_base) for x in (q, k))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + unseen
        mixed = np.exp(log_softmax(scores)) @ v
        x = x + linear(mixed.swapaxes(0, 1).reshape(length, -1), f"{block}.attn.proj")
        hidden = np.maximum(linear(norm(x, f"{block}.ln2"), f"{block}.mlp.fc"), 0) ** config.relu_power
        x = x + linear(hidden, f"{block}.mlp.proj")
    h = norm(x, "ln_f")
    logits = linear(h, "head")
    return logits if ngram is None else logits + np.exp(linear(h, "ngram_prior.gate")) * np.log(prior)


def _rotated(x: Doubles, base: float) -> Doubles:
    """Rotate each pair of (H, T, D), half a head apart, as a complex number by its position's angle."""
    pairs = x.shape[2] // 2
    rotated = x[..., :pairs] + 1j * x[..., pairs:]
    rotated = rotated * np.exp(1j * np.arange(x.shape[1])[:, None] * base ** (-np.arange(pairs) / pairs))
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def log_softmax(x: np.ndarray[Any, Any]) -> Doubles:
    """Return the log-softmax over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _speed(engine: OnnxEngine, prompt: Ids) -> float:
    """Return the speed of sampling one text, in characters a second."""
    config = SamplingConfig(max_new_tokens=TIMED)
    began = time.perf_counter()
    for _ in generate(engine, prompt, 1, config):
        pass
    return TIMED / (time.perf_counter() - began)

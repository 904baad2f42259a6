"""From next-character logits to characters: temperature, top-k, top-p, and noise that a seed alone decides."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charformer.errors import UserError
from charformer.vocab import Vocab

Ids = NDArray[np.int64]
Logits = NDArray[np.floating[Any]]


class Engine(Protocol):
    """Next-character logits of B texts of one length, which grow together."""

    def start(self, ids: Ids) -> Logits:
        """Begin with ``ids``, (B, T), of which the last ``block_size`` count; return logits (B, V)."""

    def extend(self, ids: Ids) -> Logits:
        """Append one character to each text, (B,); return logits (B, V)."""


@dataclass(frozen=True)
class SamplingConfig:
    """How characters are picked. Raises UserError for values that mean nothing."""

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}; it must be 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k is {self.top_k}; it must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"--seed is {self.seed}; it must be from 0 to 2**64 - 1")


def encode_prompt(vocab: Vocab, prompt: str) -> Ids:
    """Ids of ``prompt``, (T,) with T >= 1; an empty one means a newline, or id 0 in a vocabulary without it.

    Raises UserError for characters that the vocabulary lacks.
    """
    return vocab.encode(prompt or ("\n" if "\n" in vocab else vocab.characters[0]))


def gumbel_noise(seed: int, sample: int, position: int, vocab_size: int) -> NDArray[np.float64]:
    """(vocab_size,) Gumbel noise for the ``position``-th new character of the ``sample``-th text.

    A function of its arguments alone, made from the raw bits of Philox 4x64 (Salmon et al. 2011), whose stream NumPy
    keeps the same in every version: the text does not depend on the engine, the batch or the order of the work.
    """
    bits = np.random.Philox(key=seed + (sample << 64), counter=position << 64).random_raw(vocab_size)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # strictly between 0 and 1
    return -np.log(-np.log(uniform))


def filter_logits(logits: Logits, top_k: int | None, top_p: float | None) -> Logits:
    """(B, V) logits, with -inf for what top-k and then top-p (Holtzman et al. 2020) leave out."""
    vocab_size = logits.shape[1]
    if top_k is not None and top_k < vocab_size:
        order = np.argsort(-logits, axis=-1, kind="stable")
        logits = logits.copy()
        np.put_along_axis(logits, order[:, top_k:], -np.inf, axis=-1)
    if top_p is not None and top_p < 1:
        order = np.argsort(-logits, axis=-1, kind="stable")
        ranked = np.take_along_axis(logits, order, axis=-1).astype(np.float64)
        weights = np.exp(ranked - ranked[:, :1])
        before = np.cumsum(weights, axis=-1) - weights
        out = before >= top_p * weights.sum(axis=-1, keepdims=True)
        logits = logits.copy()
        np.put_along_axis(logits, order, np.where(out, -np.inf, ranked).astype(logits.dtype), axis=-1)
    return logits


def pick(logits: Logits, config: SamplingConfig, position: int) -> Ids:
    """The next id of each text, (B,), by the Gumbel-max trick (Maddison et al. 2014); greedy at temperature 0."""
    if config.temperature == 0:
        return logits.argmax(axis=-1)
    relative = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)  # at most 0: no temperature overflows it
    with np.errstate(over="ignore"):
        scaled = filter_logits(relative / config.temperature, config.top_k, config.top_p)
    noise = [gumbel_noise(config.seed, sample, position, logits.shape[1]) for sample in range(len(logits))]
    return (scaled + np.stack(noise)).argmax(axis=-1)


def generate(engine: Engine, prompt: Ids, samples: int, config: SamplingConfig) -> Iterator[Ids]:
    """Continue ``prompt``, (T,), ``samples`` times; yields the next ids of all, (samples,), as they are made."""
    if config.max_new_tokens == 0:
        return
    logits = engine.start(np.tile(prompt, (samples, 1)))
    for position in range(config.max_new_tokens):
        ids = pick(logits, config, position)
        yield ids
        if position + 1 < config.max_new_tokens:
            logits = engine.extend(ids)

"""The choice of characters from logits: temperature, top-k, top-p, and noise that depends on a seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charformer.data.vocab import Vocab, universal_newlines
from charformer.errors import UserError
from charformer.sampling.engine import Engine, Ids, Logits

NOISE_ROWS = 128
GREEDY_BELOW = 1e-280  # below this temperature float64 would overflow, and noise has no effect


@dataclass(frozen=True)
class SamplingConfig:
    """The settings by which characters are picked.

    They are picked among the ``top_k`` likeliest (0: all), and of these among the likeliest that together have
    probability ``top_p``. Raises UserError for invalid values.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"`max_new_tokens` is {self.max_new_tokens}; it must be 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"`temperature` is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"`top_k` is {self.top_k}; it must be 1 or more, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"`top_p` is {self.top_p}; it must be above 0 and at most 1, which is off")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"`seed` is {self.seed}; it must be from 0 to 2**64 - 1")


def encode_prompt(vocab: Vocab, prompt: str) -> Ids:
    """Return the ids of ``prompt``, (T,), T >= 1; an empty prompt means a newline, or id 0 if the vocabulary has none.

    The newlines of any system are read as \\n. Raises UserError for characters that the vocabulary lacks.
    """
    return vocab.encode(universal_newlines(prompt) or ("\n" if "\n" in vocab else vocab.characters[0]))


def gumbel_noise(seed: int, sample: int, position: int, count: int, vocab_size: int) -> NDArray[np.float64]:
    """Return (count, vocab_size) Gumbel noise for the new characters of text ``sample`` from ``position`` on.

    The noise depends on the arguments alone. It is made from the raw bits of Philox 4x64 (Salmon et al. 2011), whose
    stream is the same in every version of NumPy, so a text does not depend on the engine, the batch or the order of
    the work.
    """
    blocks = -(-vocab_size // 4)  # Philox makes four numbers per block, and each position starts a new block
    philox = np.random.Philox(key=seed + (sample << 64), counter=position * blocks)
    bits = philox.random_raw(count * 4 * blocks).reshape(count, 4 * blocks)[:, :vocab_size]
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # strictly between 0 and 1
    return -np.log(-np.log(uniform))


class Noise:
    """The noise of ``samples`` texts, made many positions ahead because a NumPy call costs far more than a row."""

    def __init__(self, seed: int, samples: int, vocab_size: int) -> None:
        self._seed = seed
        self._vocab_size = vocab_size
        self._first = 0
        self._rows = np.zeros((samples, 0, vocab_size))

    def rows(self, position: int, count: int = 1) -> NDArray[np.float64]:
        """Return the noise, (samples, count, vocab_size), for the new characters from ``position`` on."""
        start = position - self._first
        if start < 0 or start + count > self._rows.shape[1]:
            samples = len(self._rows)
            ahead = max(count, NOISE_ROWS // samples)
            self._rows = np.stack(
                [gumbel_noise(self._seed, sample, position, ahead, self._vocab_size) for sample in range(samples)]
            )
            self._first, start = position, 0
        return self._rows[:, start : start + count]


def filter_logits(logits: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.float64]:
    """Return the (N, V) logits, with -inf for those that top-k and then top-p (Holtzman et al. 2020) exclude."""
    vocab_size = logits.shape[1]
    if 0 < top_k < vocab_size:
        order = np.argsort(-logits, axis=-1, kind="stable")
        logits = logits.copy()
        np.put_along_axis(logits, order[:, top_k:], -np.inf, axis=-1)
    if top_p < 1:
        order = np.argsort(-logits, axis=-1, kind="stable")
        ranked = np.take_along_axis(logits, order, axis=-1)
        weights = np.exp(ranked - ranked[:, :1])
        before = np.cumsum(weights, axis=-1) - weights
        out = before >= top_p * weights.sum(axis=-1, keepdims=True)
        logits = logits.copy()
        np.put_along_axis(logits, order, np.where(out, -np.inf, ranked), axis=-1)
    return logits


def pick(logits: Logits, noise: NDArray[np.float64], config: SamplingConfig) -> Ids:
    """Return the ids, (N,), picked by (N, V) logits and noise with the Gumbel-max trick (Maddison et al. 2014)."""
    if config.temperature < GREEDY_BELOW:
        return logits.argmax(axis=-1)
    scaled = filter_logits(logits / np.float64(config.temperature), config.top_k, config.top_p)
    return (scaled + noise).argmax(axis=-1)


def generate(engine: Engine, prompt: Ids, samples: int, config: SamplingConfig) -> Iterator[Ids]:
    """Continue ``prompt``, (T,), ``samples`` times; yield the next id of each text, (samples,), as they are made."""
    if config.max_new_tokens == 0:
        return
    logits = engine.start(np.tile(prompt, (samples, 1)))
    noise = Noise(config.seed, samples, logits.shape[1])
    for position in range(config.max_new_tokens):
        ids = pick(logits, noise.rows(position)[:, 0], config)
        yield ids
        if position + 1 < config.max_new_tokens:
            logits = engine.extend(ids[:, None])[:, 0]

"""Speculative sampling: an n-gram table proposes characters, and one run of the model checks them all.

The table is that of the model's n-gram prior. For a model without one, the file has a small table, a draft of its text.
The method follows Leviathan et al. 2023, with shared noise instead of rejection. A proposal is accepted if the model's
logits and the seeded noise at its position pick the same character. The text is therefore that of plain sampling,
provided that logits do not depend on how many characters are read at once. In 8 and 4 bits they do, slightly
(docs/onnx.md).
"""

import base64
import zlib
from collections.abc import Iterator
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from charformer.data.ngram import NgramTable
from charformer.errors import UserError
from charformer.sampling.engine import Engine, Ids
from charformer.sampling.sampler import GREEDY_BELOW, Noise, SamplingConfig, pick

PROPOSALS = 4  # in 8 bits a run on five rows takes far less time than five runs on one (docs/onnx.md)
ORDER = 3  # characters of context: more predict the text better, but the model's picks worse (docs/lab/sampling.md)
ORDER_BYTES = 1 << 20  # bytes of rows for each length of context; the most frequent contexts are kept
STEPS_PER_NAT = 24  # of the 8-bit log-probabilities
MAX_CHARACTERS = 2_000_000  # of a text; counting more is not worthwhile


class RewindableEngine(Engine, Protocol):
    """An engine that can rewind, and for a single text can take up to ``room`` characters at once."""

    @property
    def room(self) -> int:
        """Return how many characters fit before the context is full; at 0 ``extend`` still takes one."""

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` characters of the last ``extend``."""


class Proposer(Protocol):
    """A table that proposes characters after a text, of which it reads the last ``order``."""

    @property
    def order(self) -> int: ...

    def propose(self, context: list[int], noise: NDArray[np.float64], temperature: float) -> list[int]:
        """Return the T characters after ``context`` that the table's rows and (T, V) noise pick."""


class PriorDraft:
    """A ``Proposer`` that proposes from the table of the model's own n-gram prior.

    Its rows are those that the model corrects, so the model often picks what they pick, and each row of an accepted
    proposal has already been looked up when the model reads it.
    """

    def __init__(self, table: NgramTable) -> None:
        self._table = table
        self.order = max(1, table.order)

    def propose(self, context: list[int], noise: NDArray[np.float64], temperature: float) -> list[int]:
        text = context[-self.order :]
        greedy = temperature < GREEDY_BELOW
        for row_noise in noise:
            row = self._table.row(text)
            text.append(int((row if greedy else np.log(row, dtype=np.float64) / temperature + row_noise).argmax()))
        return text[len(text) - len(noise) :]


class Draft:
    """A ``Proposer`` for a model without a prior: log-probabilities of the next character after up to ``ORDER`` others.

    Args:
        keys: the contexts, (R,) int64: their ids + 1 as the digits of a number in base V + 1; the first key is 0, the
            empty context.
        rows: -log p, (R, V) uint8, in steps of 1 / STEPS_PER_NAT nats.
    """

    def __init__(self, keys: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        self.order = ORDER
        self.keys = keys
        self.rows = rows
        self._row_of = dict(zip(keys.tolist(), range(len(keys)), strict=True))

    @classmethod
    def of(cls, ids: NDArray[np.integer], vocab_size: int) -> Self:
        """Return the table of the text ``ids``, (N,), N >= 1.

        Orders are interpolated with Witten-Bell weights (Witten & Bell 1991).
        """
        ids = ids.astype(np.int64)
        base = vocab_size + 1
        single = np.bincount(ids, minlength=vocab_size) + 1.0
        keys, tables = [np.zeros(1, np.int64)], [(single / single.sum())[None]]
        contexts = np.zeros(len(ids), np.int64)  # the key of each place's context; the first few places have none
        for order in range(1, ORDER + 1):
            if len(ids) <= order or base**order >= 2**63:
                break
            contexts = contexts[1:] + (ids[:-order] + 1) * base ** (order - 1)
            found, place, frequency = np.unique(contexts, return_inverse=True, return_counts=True)
            kept = np.sort(np.argsort(-frequency, kind="stable")[: max(1, ORDER_BYTES // vocab_size)])
            row_of = np.full(len(found), -1)
            row_of[kept] = np.arange(len(kept))
            rows = row_of[place]
            counts = np.zeros((len(kept), vocab_size))
            np.add.at(counts, (rows[rows >= 0], ids[order:][rows >= 0]), 1)
            distinct = np.count_nonzero(counts, axis=1)[:, None]
            shorter = _shorter(found[kept], base, keys, tables)
            tables.append((counts + distinct * shorter) / (counts.sum(axis=1, keepdims=True) + distinct))
            keys.append(found[kept])
        steps = np.rint(-STEPS_PER_NAT * np.log(np.concatenate(tables)))
        return cls(np.concatenate(keys), np.minimum(steps, 255).astype(np.uint8))

    def propose(self, context: list[int], noise: NDArray[np.float64], temperature: float) -> list[int]:
        base = self.rows.shape[1] + 1
        longest = base ** (ORDER - 1)
        greedy = temperature < GREEDY_BELOW
        scale = -1.0 if greedy else -1.0 / (STEPS_PER_NAT * temperature)
        key = 0
        for symbol in context[-ORDER:]:
            key = key * base + symbol + 1
        proposed = []
        for row_noise in noise:
            known, modulus = key, longest
            while known not in self._row_of:
                known %= modulus
                modulus //= base
            scaled = self.rows[self._row_of[known]] * scale
            symbol = int((scaled if greedy else scaled + row_noise).argmax())
            proposed.append(symbol)
            key = key % longest * base + symbol + 1
        return proposed

    def to_text(self) -> str:
        """Return the table as compressed ASCII text, for the metadata of a file."""
        return base64.b64encode(zlib.compress(self.keys.astype("<i8").tobytes() + self.rows.tobytes(), 9)).decode()

    @classmethod
    def from_text(cls, text: str, vocab_size: int) -> Self:
        """Return the table that ``to_text`` wrote, for ``vocab_size`` characters. Raises UserError for other text."""
        most = (1 + ORDER * max(1, ORDER_BYTES // vocab_size)) * (8 + vocab_size)
        try:
            content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)
        except (ValueError, zlib.error) as error:
            raise UserError(f"the table of proposals is damaged: {error}") from error
        rows, rest = divmod(len(content), 8 + vocab_size)
        keys = np.frombuffer(content, "<i8", rows).astype(np.int64)
        if rest or len(content) > most or not rows or keys[0] != 0:
            raise UserError("the table of proposals does not fit the vocabulary")
        return cls(keys, np.frombuffer(content, np.uint8, offset=8 * rows).reshape(rows, vocab_size))


def _shorter(
    contexts: NDArray[np.int64], base: int, keys: list[NDArray[np.int64]], tables: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return for each context the probabilities after its longest known suffix, (R, V)."""
    result = np.repeat(tables[0], len(contexts), axis=0)
    for order in range(1, len(keys)):
        endings = contexts % base**order
        place = np.minimum(np.searchsorted(keys[order], endings), len(keys[order]) - 1)
        known = keys[order][place] == endings
        result[known] = tables[order][place[known]]
    return result


def speculate(engine: RewindableEngine, draft: Proposer, prompt: Ids, config: SamplingConfig) -> Iterator[Ids]:
    """Yield the ids that ``sampler.generate`` yields for one text, (1,) at a time, in fewer runs of the model.

    If the engine's logits depend on the characters read in the same run, the text is a different one, equally likely.
    """
    if config.max_new_tokens == 0:
        return
    logits = engine.start(prompt[None])
    noise = Noise(config.seed, 1, logits.shape[1])
    ids = pick(logits, noise.rows(0)[0], config)
    yield ids
    context = [*prompt[-draft.order :].tolist(), int(ids[0])]
    position = 1
    while position < config.max_new_tokens:
        count = max(0, min(PROPOSALS, engine.room - 1, config.max_new_tokens - position - 1))
        row_noise = noise.rows(position, count + 1)[0]
        proposed = draft.propose(context, row_noise[:count], config.temperature)
        picked = pick(engine.extend(np.array([[context[-1], *proposed]]))[0], row_noise, config)
        agreed = 0
        while agreed < count and picked[agreed] == proposed[agreed]:
            agreed += 1
        if agreed < count:
            engine.rewind(count - agreed)
        for ids in picked[: agreed + 1, None]:
            yield ids
        context = [*context, *picked[: agreed + 1].tolist()][-draft.order :]
        position += agreed + 1

"""Compare speculative with plain sampling, and the draft table with counts that are made one by one."""

import base64
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charformer.data import corpus
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.sampler import SamplingConfig, generate, gumbel_noise
from charformer.sampling.speculation import ORDER, PROPOSALS, STEPS_PER_NAT, Draft, speculate
from export.exporter import export


@pytest.fixture(scope="module")
def engine(trained_run: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charformer.data.corpus.cache_folder", lambda: path.parent / "cache")
        export(RunDir(trained_run), path, "fp32", portable=False, corpus=corpus.load(str(text_file)))
    return OnnxEngine(path)


@pytest.mark.parametrize(
    "settings_of",
    [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.3, "top_p": 0.7}],
    ids=str,
)
def test_the_text_is_that_of_plain_sampling(engine: OnnxEngine, settings_of: dict[str, float]) -> None:
    assert engine.description.draft is not None
    config = SamplingConfig(max_new_tokens=5000, seed=3, **settings_of)  # 200 times past the context of 24
    prompt = engine.description.vocab.encode("def")
    plain = np.concatenate(list(generate(engine, prompt, 1, config)))
    fewer = np.concatenate(list(speculate(engine, engine.description.draft, prompt, config)))
    np.testing.assert_array_equal(plain, fewer)


def test_it_takes_fewer_runs(engine: OnnxEngine) -> None:
    assert engine.description.draft is not None

    class Counting:
        start, rewind, runs = engine.start, engine.rewind, 0

        @property
        def room(self) -> int:
            return engine.room

        def extend(self, ids: np.ndarray) -> np.ndarray:
            self.runs += 1
            return engine.extend(ids)

    counting = Counting()
    config = SamplingConfig(max_new_tokens=600, seed=1)
    prompt = engine.description.vocab.encode("T")
    made = list(speculate(counting, engine.description.draft, prompt, config))
    assert len(made) == 600
    assert all(step.shape == (1,) for step in made)
    assert counting.runs < 500  # for a model that has hardly learned anything


@pytest.mark.parametrize("length", [0, 1, 2, 3, PROPOSALS, PROPOSALS + 1, PROPOSALS + 2, 22, 23, 24, 25])
@pytest.mark.parametrize("prompt", [1, 23, 24, 25])
def test_lengths_at_the_edges(engine: OnnxEngine, length: int, prompt: int) -> None:
    assert engine.description.draft is not None
    ids = np.arange(prompt) % 5
    config = SamplingConfig(max_new_tokens=length, seed=2)
    plain = [int(step[0]) for step in generate(engine, ids, 1, config)]
    assert [int(step[0]) for step in speculate(engine, engine.description.draft, ids, config)] == plain
    assert len(plain) == length


def slow_probabilities(text: list[int], vocab_size: int, context: tuple[int, ...]) -> np.ndarray:
    """Return the probabilities after ``context``, to which each longer suffix adds its share by Witten and Bell."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for order in range(1, ORDER + 1):
        for place in range(order, len(text)):
            counts[tuple(text[place - order : place])][text[place]] += 1
    single = np.bincount(text, minlength=vocab_size) + 1.0
    found = single / single.sum()
    for order in range(1, len(context) + 1):
        seen = counts.get(context[len(context) - order :])
        if not seen:
            break
        here = np.array([seen[symbol] for symbol in range(vocab_size)], float)
        found = (here + len(seen) * found) / (here.sum() + len(seen))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1), min_size=1))))
def test_the_table_is_witten_and_bell_s(sized: tuple[int, list[int]]) -> None:
    vocab_size, text = sized
    draft = Draft.of(np.array(text, np.uint8), vocab_size)
    noise = gumbel_noise(0, 0, 0, 1, vocab_size)
    for length in range(ORDER + 2):
        context = text[:length]
        wanted = slow_probabilities(text, vocab_size, tuple(context[-ORDER:]))
        key = 0
        for symbol in context[-ORDER:]:
            key = key * (vocab_size + 1) + symbol + 1
        known = np.flatnonzero(draft.keys == key)
        if len(known):
            steps = np.minimum(-STEPS_PER_NAT * np.log(wanted), 255)
            np.testing.assert_allclose(draft.rows[known[0]], steps, atol=0.51)
        scores = np.rint(np.minimum(-STEPS_PER_NAT * np.log(wanted), 255)) / -STEPS_PER_NAT / 0.7 + noise[0]
        best = np.sort(scores)[::-1]
        if vocab_size == 1 or best[0] - best[1] > 0.1:  # otherwise rounding decides
            assert draft.propose(context, noise, 0.7) == [int(scores.argmax())]


def test_proposals_follow_one_another() -> None:
    text = np.array([0, 1, 2, 3] * 50)
    draft = Draft.of(text, 4)
    assert draft.propose([2, 3], np.zeros((5, 4)), 0) == [0, 1, 2, 3, 0]
    assert draft.propose([], np.zeros((1, 4)), 0)[0] in range(4)


def test_several_proposals_equal_those_made_one_at_a_time() -> None:
    text = np.random.default_rng(0).integers(4, size=4000)
    draft = Draft.of(text, 4)
    noise = gumbel_noise(1, 0, 0, 200, 4)
    context = [1, 2, 3]
    for place in range(200):
        context += draft.propose(context, noise[place : place + 1], 1.0)
    assert draft.propose([1, 2, 3], noise, 1.0) == context[3:]


def test_a_table_of_many_symbols_stays_small() -> None:
    text = np.random.default_rng(0).integers(3000, size=50_000)
    draft = Draft.of(text, 3000)
    assert draft.rows.nbytes < 4 << 20
    again = Draft.from_text(draft.to_text(), 3000)
    np.testing.assert_array_equal(again.rows, draft.rows)
    np.testing.assert_array_equal(again.keys, draft.keys)


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "é",
        "AAAA",
        packed(b""),
        packed(b"\0" * 13),  # no whole row
        packed(b"\1" * 24),  # no row for no context
        packed(bytes(200_000_000)),  # more than any table
        packed(bytes(24))[:-8],
        packed(bytes(24) + b"x" * 5),
    ],
    ids=lambda text: text[:12],
)
def test_tables_that_are_malformed_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="table of proposals"):
        Draft.from_text(text, 4)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.sampling import sampler
from charformer.sampling.sampler import SamplingConfig

logits_of_any_size = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    elements=st.floats(-20, 20, width=32),
)


@given(logits_of_any_size, st.integers(1, 12))
def test_top_k_keeps_the_k_largest(logits: np.ndarray, k: int) -> None:
    for row, kept in zip(logits, np.isfinite(sampler.filter_logits(logits, k, 1.0)), strict=True):
        assert kept.sum() == min(k, len(row))
        assert row[kept].min() >= row[~kept].max(initial=-np.inf)


@given(logits_of_any_size, st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_reach_p(logits: np.ndarray, p: float) -> None:
    for row, kept in zip(logits, np.isfinite(sampler.filter_logits(logits, 0, p)), strict=True):
        probabilities = np.exp(row.astype(np.float64) - row.max())
        probabilities /= probabilities.sum()
        assert row[kept].min() >= row[~kept].max(initial=-np.inf)
        assert probabilities[kept].sum() >= p - 1e-9
        assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-9


def test_top_p_applies_to_what_top_k_left() -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = np.isfinite(sampler.filter_logits(logits, 2, 0.5))  # 0.4 of 0.7 is more than a half
    assert kept.tolist() == [[True, False, False, False]]


def test_filters_that_are_off_change_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 7))
    np.testing.assert_array_equal(sampler.filter_logits(logits, 0, 1.0), logits)
    np.testing.assert_array_equal(sampler.filter_logits(logits, 7, 1.0), logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_come_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = np.array([[2.0, 1.0, 0.0, -1.0]])
    expected = np.exp(logits[0] / temperature)
    expected /= expected.sum()
    noise = sampler.gumbel_noise(3, 0, 0, 20_000, 4)
    picks = sampler.pick(np.repeat(logits, 20_000, axis=0), noise, SamplingConfig(temperature=temperature))
    counts = np.bincount(picks, minlength=4)
    chi_squared = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert chi_squared < 16.3  # the 99.9th percentile at 3 degrees of freedom; the seed is fixed


def test_noise_is_gumbel_s_and_independent_of_neighbours() -> None:
    noise = sampler.gumbel_noise(5, 0, 0, 2000, 64)
    assert noise.mean() == pytest.approx(0.5772, abs=0.02)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)
    other_sample, other_seed = (sampler.gumbel_noise(*key, 0, 2000, 64) for key in ((5, 1), (6, 0)))
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise, other_sample), (noise, other_seed)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


def test_noise_never_changes_between_versions() -> None:
    blocks = np.random.Philox(key=[7, 2], counter=[9 * 2, 0, 0, 0]).random_raw(8)  # two blocks of four a position
    expected = [-np.log(-np.log(((int(bits) >> 12) + 0.5) / 2**52)) for bits in blocks[:5]]
    np.testing.assert_array_equal(sampler.gumbel_noise(7, 2, 9, 1, 5), [expected])
    assert sampler.gumbel_noise(7, 2, 9, 1, 5)[0, 0] == pytest.approx(1.6088380906510664, rel=1e-12)


@pytest.mark.parametrize("vocab_size", [1, 4, 65])
def test_noise_is_a_function_of_the_position_alone(vocab_size: int) -> None:
    rows = np.stack([sampler.gumbel_noise(1, sample, 0, 300, vocab_size) for sample in range(2)])
    for start, count in ((0, 300), (7, 3), (299, 1)):
        np.testing.assert_array_equal(
            sampler.gumbel_noise(1, 1, start, count, vocab_size), rows[1, start : start + count]
        )
    noise = sampler.Noise(1, 2, vocab_size)
    for start, count in ((0, 1), (1, 4), (60, 8), (62, 4), (126, 4), (200, 100), (3, 2)):  # also back, and past an edge
        np.testing.assert_array_equal(noise.rows(start, count), rows[:, start : start + count])


def test_the_coldest_and_the_hottest_temperatures_are_safe() -> None:
    logits = np.array([[-5.0, -3.0, -9.0]], np.float32)
    noise = sampler.gumbel_noise(0, 0, 0, 600, 3)
    for cold in (0, 1e-320, 1e-281, 1e-279):
        assert sampler.pick(logits, noise[:1], SamplingConfig(temperature=cold)).tolist() == [1]
    hot = sampler.pick(np.repeat(logits, 600, axis=0), noise, SamplingConfig(temperature=1e308))
    assert np.bincount(hot).min() > 150


class Recorder:
    """An engine whose logits are a function of the last character."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.calls = 0

    def start(self, ids: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.table[ids[:, -1]]

    def extend(self, ids: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.table[ids]  # (B, 1, V)


def test_a_text_does_not_depend_on_its_batch() -> None:
    table = np.random.default_rng(0).normal(size=(6, 6))
    config = SamplingConfig(max_new_tokens=30, seed=11)
    together = np.stack(list(sampler.generate(Recorder(table), np.array([2]), 3, config)), axis=1)
    assert together.shape == (3, 30)
    assert len({tuple(row) for row in together}) == 3
    alone = np.stack(list(sampler.generate(Recorder(table), np.array([2]), 1, config)), axis=1)
    np.testing.assert_array_equal(alone[0], together[0])


@pytest.mark.parametrize("length", [0, 1, 5])
def test_no_logits_are_computed_in_vain(length: int) -> None:
    engine = Recorder(np.zeros((4, 4)))
    assert len(list(sampler.generate(engine, np.array([0]), 2, SamplingConfig(max_new_tokens=length)))) == length
    assert engine.calls == length


def test_prompts() -> None:
    vocab = Vocab("b\na")
    assert sampler.encode_prompt(vocab, "ab").tolist() == [2, 0]
    assert sampler.encode_prompt(vocab, "").tolist() == [1]
    assert sampler.encode_prompt(Vocab("xy"), "").tolist() == [0]
    with pytest.raises(UserError, match=r"U\+00E9"):
        sampler.encode_prompt(vocab, "é")


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
     {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"seed": -1}, {"seed": 2**64}],
    ids=str,
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}`"):
        SamplingConfig(**wrong)

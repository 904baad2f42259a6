"""Compare n-gram tables with interpolated Kneser-Ney smoothing made of dictionaries and loops."""

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from charformer.data import ngram_counts
from charformer.data.ngram import FLOOR, NgramTable
from charformer.data.ngram_counts import DISCOUNTS, Counts, build, count, fold_bounds, merged
from charformer.errors import UserError


def text(characters: int, vocab_size: int, seed: int = 0) -> NDArray[np.int64]:
    """Return ids that repeat themselves as a language does, from a random walk that prefers some successors."""
    r = np.random.default_rng(seed)
    ids = [0]
    for _ in range(characters - 1):
        ids.append(int((ids[-1] * 3 + r.choice((1, 2, 5), p=(0.7, 0.2, 0.1))) % vocab_size))
    return np.array(ids)


def naive(parts: list[list[int]], vocab_size: int, order: int, context: list[int]) -> list[float]:
    """Return the probabilities after ``context`` by the formula, from n-grams that lie within one part each."""
    whole: dict[tuple[int, ...], int] = defaultdict(int)
    for ids in parts:
        for start in range(len(ids) - order):
            whole[tuple(ids[start : start + order + 1])] += 1
    numbers = dict(whole)
    tables = {order: numbers}
    for length in range(order - 1, -1, -1):
        preceded: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for ngram in tables[length + 1]:
            preceded[ngram[1:]].add(ngram[0])
        tables[length] = {ngram: len(before) for ngram, before in preceded.items()}
    p = [1 / vocab_size] * vocab_size
    for length in range(min(order, len(context)) + 1):
        ending = tuple(context[len(context) - length :])
        found = {ngram[-1]: n for ngram, n in tables[length].items() if ngram[:-1] == ending}
        if found:
            total, discount = sum(found.values()), DISCOUNTS[length]
            p = [
                max(found.get(x, 0) - discount, 0) / total + discount * len(found) / total * p[x]
                for x in range(vocab_size)
            ]
    return p


def padded(contexts: list[list[int]], order: int) -> NDArray[np.int64]:
    rows = [[-1] * (order - len(context[-order:])) + context[-order:] for context in contexts]
    return np.array(rows, np.int64).reshape(len(rows), order)


@pytest.mark.parametrize(("vocab_size", "order", "characters"), [(7, 3, 400), (4, 6, 300), (12, 1, 90), (3, 2, 4)])
def test_rows_are_the_naive_ones(vocab_size: int, order: int, characters: int) -> None:
    ids = text(characters, vocab_size)
    table = build(count(ids, vocab_size, order), min_gain=0)
    contexts = [ids[end - order : end].tolist() for end in range(order, characters, 7)]
    contexts += [[], [1], [2, 2, 2, 2, 2, 2], [0, 1, 0, 1], ids[:2].tolist()]
    rows = table.rows(padded(contexts, order))
    expected = np.array([naive([ids.tolist()], vocab_size, order, context) for context in contexts])
    np.testing.assert_allclose(rows, expected, rtol=0.03, atol=2e-4)  # a share is rounded to 1/16 of an octave
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    for context, row in zip(contexts, rows, strict=True):
        np.testing.assert_allclose(table.row(context), row, atol=1e-6)


def test_deep_contexts_are_looked_up_as_the_dense_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, order = text(3000, 9), 5
    counts = count(ids, 9, order)
    expected = build(counts, min_gain=0)
    monkeypatch.setattr("charformer.data.ngram.DENSE_CELLS", 0)
    monkeypatch.setattr("charformer.data.ngram.MAX_KEPT", 90)
    table = build(counts, min_gain=0)
    contexts = padded([ids[end - order : end].tolist() for end in range(order, 500)] + [[], [3], [8, 8, 8]], order)
    np.testing.assert_allclose(table.rows(contexts), expected.rows(contexts), atol=1e-6)
    for context in contexts:
        np.testing.assert_allclose(
            table.row(context[context >= 0].tolist()), expected.rows(context[None])[0], atol=1e-6
        )


def test_a_text_counts_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(2500, 6)
    expected = count(ids, 6, 4)
    monkeypatch.setattr(ngram_counts, "PIECE", 300)
    found = count(ids, 6, 4)
    assert (found.keys.tolist(), found.counts.tolist()) == (expected.keys.tolist(), expected.counts.tolist())
    mapped = count(ids.astype(np.uint8), 6, 4, table=np.arange(6)[::-1].copy())
    assert mapped.keys.tolist() == count(5 - ids, 6, 4).keys.tolist()


def test_the_rarest_are_dropped_where_there_are_too_many() -> None:
    ids = text(4000, 9)
    whole = count(ids, 9, 4)
    found = count(ids, 9, 4, most=50)
    assert len(found.keys) == 50
    assert found.counts.min() >= np.sort(whole.counts)[-50]
    assert found.dropped is not None
    assert found.dropped.counts.sum() <= len(whole.keys) - 50


def test_dropping_rare_strings_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    words = [[26, *r.integers(26, size=r.integers(2, 8)).tolist()] for _ in range(900)]
    ids = np.array([character for word in r.zipf(1.3, 9000) % 900 for character in words[word]])
    ids, held_out, order = ids[:-4000], ids[-4000:], 5
    contexts = np.lib.stride_tricks.sliding_window_view(held_out, order)[:-1]

    def loss(order: int, most: int) -> float:
        table = build(count(ids, 27, order, most=most), min_gain=0)
        return -float(np.log(table.rows(contexts)[np.arange(len(contexts)), held_out[5:]]).mean())

    strings = len(count(ids, 27, order).keys)
    whole, shorter = loss(order, strings), loss(2, strings)
    assert loss(order, strings - 1) < whole + 0.001
    assert loss(order, strings // 2) < whole + 0.3 * (shorter - whole)
    monkeypatch.setattr(ngram_counts, "PIECE", 3000)
    assert loss(order, strings // 2) < whole + 0.3 * (shorter - whole)


def test_dropped_strings_are_left_out_with_their_fold() -> None:
    ids, order = text(4000, 9), 4
    parts = [count(ids[start:end], 9, order, most=200) for start, end in fold_bounds(len(ids), 3)]
    whole = merged(parts)
    left = whole.without(parts[1])
    expected = merged([parts[0], parts[2]])
    assert expected.dropped is not None
    while left is not None and expected is not None:
        assert left.keys.tolist() == expected.keys.tolist()
        assert left.counts.tolist() == expected.counts.tolist()
        left, expected = left.dropped, expected.dropped
    assert left is expected is None


def test_folds_do_not_see_their_own_text() -> None:
    vocab_size, order, folds = 6, 3, 4
    ids = text(800, vocab_size)

    def tables(ids: NDArray[np.int64]) -> list[NgramTable]:
        parts = [count(ids[start:end], vocab_size, order) for start, end in fold_bounds(len(ids), folds)]
        whole = merged(parts)
        return [build(whole.without(part), min_gain=0) for part in parts]

    def rows_of(ids: NDArray[np.int64], fold: int, tables: list[NgramTable]) -> NDArray[np.float32]:
        start, end = fold_bounds(len(ids), folds)[fold]
        return tables[fold].rows(padded([ids[max(0, at - order) : at].tolist() for at in range(start, end)], order))

    before = tables(ids)
    parts = [ids[start:end].tolist() for fold, (start, end) in enumerate(fold_bounds(len(ids), folds)) if fold != 2]
    expected = np.array([naive(parts, vocab_size, order, ids[at - order : at].tolist()) for at in range(400, 600, 9)])
    np.testing.assert_allclose(rows_of(ids, 2, before)[::9], expected, rtol=0.03, atol=2e-4)

    changed = ids.copy()
    changed[500] = (changed[500] + 1) % vocab_size
    after = tables(changed)
    moved = (rows_of(changed, 2, after) != rows_of(ids, 2, before)).any(axis=1)
    assert not moved[: 500 - 400 + 1].any()  # up to the row that predicts the changed character
    assert not moved[500 - 400 + order + 1 :].any()
    assert moved[500 - 400 + 1 : 500 - 400 + order + 1].any()
    assert (rows_of(changed, 1, after) != rows_of(ids, 1, before)).any()


def test_counts_of_two_texts_add_up() -> None:
    one, two = text(500, 5, seed=1), text(300, 5, seed=2)
    both = merged([count(one, 5, 2), count(two, 5, 2)])
    table = build(both, min_gain=0)
    expected = naive([one.tolist(), two.tolist()], 5, 2, [1, 4])
    np.testing.assert_allclose(table.row([1, 4]), expected, rtol=0.03, atol=2e-4)
    assert len(merged([count(one[:1], 5, 2), count(two[:1], 5, 2)]).keys) == 0


def test_a_pruned_table_is_smaller_and_predicts_almost_as_well() -> None:
    ids, held_out = text(2000, 20), text(3000, 20, seed=9)
    counts = count(ids, 20, 4)
    contexts = np.lib.stride_tricks.sliding_window_view(held_out, 4)[:-1]

    def loss(table: NgramTable) -> float:
        return -float(np.log(table.rows(contexts)[np.arange(len(contexts)), held_out[4:]]).mean())

    whole, pruned = build(counts, min_gain=0), build(counts)
    assert len(pruned) < 0.8 * len(whole)
    assert loss(pruned) < loss(whole) + 0.005
    np.testing.assert_allclose(pruned.rows(contexts).sum(axis=1), 1, atol=1e-6)


def test_a_least_count_leaves_no_rarer_fragment_in_the_table() -> None:
    ids = np.concatenate([text(2000, 9), [8, 7, 8, 7, 7], text(2000, 9)])  # a step that the walk never takes
    table = build(count(ids, 9, 3), min_count=3, min_gain=0)
    characters, following = table.arrays["characters"], table.arrays["following"]
    children, entries = table.arrays["children"], table.arrays["entries"]
    strings, place = [[]], 1
    for context in range(len(children)):
        for child in range(place, place + int(children[context])):
            strings.append([int(characters[child]), *strings[context]])
        place += int(children[context])
    whose = np.repeat(np.arange(len(entries)), entries)
    as_text = "".join(chr(97 + character) for character in ids)
    for context, character in zip(whose, following, strict=True):
        fragment = "".join(chr(97 + each) for each in [*strings[context], int(character)])
        assert sum(as_text.startswith(fragment, at) for at in range(len(as_text))) >= 3
    assert len(table) > 50
    np.testing.assert_allclose(table.rows(padded([ids[:3].tolist()], 3)).sum(), 1, atol=1e-6)


def test_a_text_too_short_for_any_context_is_uniform() -> None:
    table = build(count(np.array([0, 1]), 4, 3))
    np.testing.assert_allclose(table.row([0, 1]), 0.25)
    assert table.rows(np.zeros((0, 3), np.int64)).shape == (0, 4)
    assert len(table) == 0


def test_long_contexts_shrink_to_what_63_bits_hold() -> None:
    lengths = {size: ngram_counts.longest_context(6, size) for size in (1, 65, 511, 512, 4095, 4096, 8192)}
    assert lengths == {1: 6, 65: 6, 511: 6, 512: 5, 4095: 4, 4096: 4, 8192: 3}
    for size, order in lengths.items():
        assert size ** (order + 1) < 2**63
    ids = text(500, 8192)
    np.testing.assert_allclose(build(count(ids, 8192, lengths[8192])).rows(ids[None, :3]).sum(), 1, atol=1e-5)


def test_every_probability_has_a_logarithm() -> None:
    table = build(count(np.zeros(100_000, np.int64), 2, 6), min_gain=0)
    assert table.row([0] * 6)[1] >= FLOOR


def damaged(table: NgramTable, name: str, place: int, value: int) -> dict[str, NDArray[np.integer]]:
    arrays = {key: array.copy() for key, array in table.arrays.items()}
    arrays[name][place] = value
    return arrays


def test_arrays_that_are_not_a_table_are_refused() -> None:
    table = build(count(text(600, 7), 7, 3), min_gain=0)
    NgramTable(7, table.arrays)
    wrong = [
        damaged(table, "characters", -1, 7),
        damaged(table, "characters", 1, 6),
        damaged(table, "children", 0, 60000),
        damaged(table, "children", -1, 1),
        damaged(table, "entries", 0, 1),
        damaged(table, "backoffs", 3, 0),
        damaged(table, "following", 0, 6),
        {key: array for key, array in table.arrays.items() if key != "shares"},
        table.arrays | {"shares": table.arrays["shares"][:-1]},
        table.arrays | {"backoffs": table.arrays["backoffs"].astype(np.float32)},
        {key: array[:0] for key, array in table.arrays.items()},
    ]
    for arrays in wrong:
        with pytest.raises(UserError, match="n-gram table"):
            NgramTable(7, arrays)
    with pytest.raises(UserError, match=r"8,192 distinct"):
        NgramTable(9000, table.arrays)


def test_counts_know_their_own_part() -> None:
    whole = Counts(5, 1, np.array([3, 8, 20]), np.array([2, 1, 4]))
    rest = whole.without(Counts(5, 1, np.array([3, 8, 21]), np.array([1, 1, 9])))
    assert (rest.keys.tolist(), rest.counts.tolist()) == ([3, 20], [1, 4])

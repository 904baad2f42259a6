"""Test the passes over a text that is cut into windows."""

from itertools import pairwise

import numpy as np
import pytest

from charformer.data.windows import WindowOrder


@pytest.mark.parametrize(("characters", "length"), [(5, 4), (9, 4), (21, 20), (1000, 7), (1001, 1), (4096, 256)])
def test_windows_fit_the_text_and_do_not_overlap_in_a_pass(characters: int, length: int) -> None:
    order = WindowOrder(characters, length, seed=3)
    count = max(1, (characters - length) // length)
    for number in range(20):
        starts = np.sort(order.starts(number * count, count))
        assert starts[0] >= 0
        assert starts[-1] + length < characters  # the last target too
        assert set(np.diff(starts)) <= {length}


def test_every_place_has_its_turn_and_those_in_the_middle_as_often_as_others() -> None:
    order, seen = WindowOrder(100, 10, seed=0), np.zeros(100)
    for start in order.starts(0, 9 * 4000):
        seen[start : start + 10] += 1
    assert seen[18:81].min() > 0.99 * 4000  # in nearly every pass
    assert seen[:99].min() > 0.04 * 4000  # the ends too
    assert seen[99] == 0  # a target alone


def test_however_it_is_asked_the_order_is_the_same() -> None:
    whole = WindowOrder(1000, 9, seed=5).starts(0, 700)
    pieces = WindowOrder(1000, 9, seed=5)
    places = [0, 8, 16, 109, 110, 111, 400, 699, 700]
    parts = [pieces.starts(a, b - a) for a, b in pairwise(places)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(WindowOrder(1000, 9, seed=5).starts(350, 50), whole[350:400])  # a resumed run
    assert not np.array_equal(WindowOrder(1000, 9, seed=6).starts(0, 700), whole)
    assert not np.array_equal(whole[:110] - whole[:110].min(), whole[110:220] - whole[110:220].min())

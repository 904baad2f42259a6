"""Compare stop texts with a search in the whole text."""

import random

import pytest

from charformer.sampling.stopping import StopText


def shown(text: str, stops: list[str]) -> tuple[str, bool]:
    stop = StopText(stops)
    pieces = [stop.push(character) for character in text]
    return "".join(pieces) + stop.finish(), stop.is_reached


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo", ["\n\n"], "one\ntwo"),
        ("aab aaab", ["aaab"], "aab "),  # a match that begins inside a failed one
        ("abcd", ["abcd", "bc"], "a"),  # the one that is complete first
        ("xabc", ["bc", "abc"], "x"),  # of two that end together, the longer one
        ("stop", ["stop"], ""),
        ("text", [], "text"),
        ("half a sto", ["stop"], "half a sto"),  # the held-back part comes at the end
    ],
)
def test_a_text_ends_before_the_first_stop(text: str, stops: list[str], expected: str) -> None:
    assert shown(text, stops) == (expected, expected != text)


def test_nothing_is_held_back_that_cannot_become_a_stop() -> None:
    stop = StopText(["\n\n"])
    assert [stop.push(character) for character in "a\nb\n\nc"] == ["a", "", "\nb", "", "", ""]
    assert stop.is_reached
    assert stop.finish() == ""


def test_random_texts_end_where_a_search_says() -> None:
    numbers = random.Random(0)
    for _ in range(2000):
        text = "".join(numbers.choices("ab", k=12))
        stops = ["".join(numbers.choices("ab", k=numbers.randint(1, 4))) for _ in range(numbers.randint(1, 3))]
        ends = [(end, -len(stop)) for stop in stops for end in range(13) if text[:end].endswith(stop)]
        end, length = min(ends) if ends else (12, 0)
        assert shown(text, stops) == (text[: end + length], bool(ends)), (text, stops)

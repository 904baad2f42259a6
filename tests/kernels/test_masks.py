"""The CPU's dropout masks: how often they drop, and that no two of their elements depend on one another."""

import math

import pytest
import torch
from torch import Tensor

from kernels import masks
from kernels.masks import Masks


@pytest.mark.parametrize("dropout_p", [0.001, 0.15, 0.5, 0.999])
def test_they_drop_as_often_as_they_should_and_no_element_with_another(dropout_p: float) -> None:
    torch.manual_seed(1)
    shape = torch.Size((1000, 803))  # more than the seeds give at once
    made = Masks(dropout_p, 1000 * 803)
    keep = made.draw(shape)
    drop = 1 - keep.double()
    count, rate = drop.numel(), round(dropout_p * 65536) / 65536
    assert made.scale == pytest.approx(1 / (1 - rate))
    assert abs(drop.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
    centred = (drop - rate) / math.sqrt(rate * (1 - rate))
    for apart in (1, 2, 3, 4, 5, 8, 803, 4 * masks.SEEDS):
        flat = centred.flatten()
        assert abs((flat[apart:] * flat[:-apart]).mean()) < 5 / math.sqrt(count - apart)
    later = made.draw(shape)
    correlation = (centred.flatten() * ((1 - later.double()).flatten() - rate) / math.sqrt(rate * (1 - rate))).mean()
    assert abs(correlation) < 5 / math.sqrt(count)


def test_a_seed_gives_the_same_masks_and_another_call_others() -> None:
    shape = torch.Size((100, 403))
    torch.manual_seed(1)
    made = Masks(0.5, 40300)
    first, second = made.draw(shape), made.draw(shape)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    again = Masks(0.5, 40300)
    assert torch.equal(first, again.draw(shape))
    assert torch.equal(second, again.draw(shape))


def advance(words: Tensor, times: int) -> Tensor:
    for _ in range(times):
        words = masks._xorshift(words, torch.empty_like(words), torch.empty_like(words))
    return words


def rank(vectors: list[int]) -> int:
    """Of vectors over the field of two elements, as the bits of integers."""
    basis: list[int] = []
    for vector in vectors:
        for other in basis:
            vector = min(vector, vector ^ other)
        if vector:
            basis.append(vector)
    return len(basis)


def test_a_words_numbers_are_independent_of_each_other_and_of_those_that_come_after() -> None:
    """The bits are sums, modulo 2, of a seed's, so two numbers are independent where all of their 32 bits are."""
    units = torch.tensor([2**bit if bit < 63 else -(2**63) for bit in range(64)])
    first = advance(units, 1)
    assert rank([word % 2**64 for word in first.tolist()]) == 64, "no two words have the same successor"
    numbers = first.view(torch.int16).view(64, 4).int() & 0xFFFF  # of each unit
    for times in (*range(20), 100, 1000):
        later = advance(first, times).view(torch.int16).view(64, 4).int() & 0xFFFF
        for i in range(4):
            for j in range(4):
                if times or i != j:
                    images = (numbers[:, i] | (later[:, j].long() << 16)).tolist()
                    assert rank(images) == 32, (times, i, j)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (4, 4)])
def test_they_have_any_number_of_elements(shape: tuple[int, ...]) -> None:
    made = Masks(0.5, math.prod(shape))
    assert made.draw(torch.Size(shape)).shape == shape


def test_nothing_is_dropped_out_of_nothing() -> None:
    assert Masks(0.5, 0).draw(torch.Size((0,))).shape == (0,)

"""Test the CPU's dropout masks: how often they drop, and that no two elements depend on one another."""

import math

import pytest
import torch
from torch import Tensor

from kernels.cpu import dropout
from kernels.cpu.dropout import Masks

SHAPE = torch.Size((1000, 803))


def standard(keep: Tensor, rate: float) -> Tensor:
    """Return the mask as float64 numbers of mean 0 and variance 1."""
    return ((1 - keep.double()) - rate).flatten() / math.sqrt(rate * (1 - rate))


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlations of ``a`` and ``b`` at every cyclic distance, in standard deviations of pure chance."""
    product = torch.fft.rfft(a).conj() * torch.fft.rfft(b)
    return torch.fft.irfft(product, n=len(a)) / math.sqrt(len(a))


@pytest.mark.parametrize("dropout_p", [0.001, 0.15, 0.5, 0.999])
def test_they_drop_as_often_as_they_should_and_no_element_with_another(dropout_p: float) -> None:
    torch.manual_seed(1)
    made = Masks(dropout_p)
    keep = made.draw(SHAPE)
    rate = round(dropout_p * 65536) / 65536
    assert made.scale == pytest.approx(1 / (1 - rate))
    assert set(keep.unique().tolist()) == {0, 1}
    found = standard(keep, rate)
    assert abs(found.sum()) < 5 * math.sqrt(len(found))
    if 0.1 < dropout_p < 0.9:  # else a sum of products is nothing like normal
        assert correlations(found, found)[1:].abs().max() < 6.5
        later = standard(made.draw(SHAPE), rate)
        assert correlations(found, later).abs().max() < 6.5
        products = found[1:] * found[:-1]
        assert correlations(products, later[1:] * later[:-1]).abs().max() < 6.5, "no two with another two"


def test_the_numbers_of_the_tables_are_uniform() -> None:
    """All 65,536 numbers are equally frequent by a chi-squared test, in each table and in the XOR of both."""
    first, second = dropout._tables()
    for numbers in (first, second, first ^ second):
        counts = torch.bincount(numbers.int() + 2**15, minlength=2**16).double()
        expected = len(numbers) / 2**16
        statistic = float(((counts - expected) ** 2).sum()) / expected
        assert abs(statistic - 2**16) < 5 * math.sqrt(2 * 2**16)


def test_a_seed_gives_the_same_masks_and_another_call_others() -> None:
    torch.manual_seed(1)
    made = Masks(0.5)
    first, second = made.draw(SHAPE), made.draw(SHAPE)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    again = Masks(0.5)
    assert torch.equal(first, again.draw(SHAPE))
    assert torch.equal(second, again.draw(SHAPE))
    torch.manual_seed(2)
    assert not torch.equal(first, again.draw(SHAPE))


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (2, 5), (dropout.MAX_ELEMENTS,)])
def test_they_have_any_number_of_elements_that_a_table_holds(shape: tuple[int, ...]) -> None:
    assert Masks(0.5).draw(torch.Size(shape)).shape == shape

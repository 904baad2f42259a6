"""Test cross-entropy beyond accuracy: NaN, infinities, ignored rows, targets out of range."""

import pytest
import torch
import torch.nn.functional as F

from kernels import ops
from tests.kernels.marks import NEEDS_KERNELS, random

pytestmark = [*NEEDS_KERNELS, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy's, about NaN


def test_nan_comes_out_as_nan() -> None:
    logits = random(5, 48).requires_grad_()
    ops.cross_entropy(logits, torch.arange(5)).backward(torch.tensor(torch.nan))
    assert logits.grad is not None
    assert logits.grad.isnan().any()
    x = random(5, 48)
    x[2, 7] = torch.nan
    assert ops.cross_entropy(x, torch.zeros(5, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("vocab", [3, 87, 9000])
def test_minus_infinity_and_of_enormous_logits(vocab: int) -> None:
    logits = 1e4 * random(4, vocab)
    logits[0, : vocab - 1] = -torch.inf  # for 9,000 symbols, two whole blocks of only these
    targets = torch.tensor([vocab - 1, 0, 1, 2])
    leaf, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = ops.cross_entropy(leaf, targets), F.cross_entropy(plain, targets)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(leaf.grad, plain.grad)


def test_rows_are_ignored_under_any_ignore_index() -> None:
    logits = random(6, 10)
    logits[1] = torch.nan  # an ignored row may hold anything
    for ignore_index in (-100, -1, 3):
        leaf = logits.clone().requires_grad_()
        targets = torch.tensor([0, ignore_index, 4, 5, ignore_index, 6])
        loss = ops.cross_entropy(leaf, targets, ignore_index)
        loss.backward()
        torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2, 3, 5]], targets[[0, 2, 3, 5]]))
        assert leaf.grad is not None
        assert not leaf.grad[[1, 4]].any()


def test_without_a_row_that_counts_the_loss_is_nan_as_pytorchs() -> None:
    assert ops.cross_entropy(random(2, 5), torch.tensor([-100, -100])).isnan()


@pytest.mark.parametrize("target", [-1, 5, 2**40])
def test_a_target_outside_the_vocabulary_reads_nothing_and_gives_nan(target: int) -> None:
    assert ops.cross_entropy(random(2, 5), torch.tensor([0, target])).isnan()


def test_logits_with_padded_rows() -> None:
    padded = random(6, 96)
    targets = torch.arange(6)
    torch.testing.assert_close(ops.cross_entropy(padded[:, :87], targets), F.cross_entropy(padded[:, :87], targets))

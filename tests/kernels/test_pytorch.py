"""Compare the backend ``pytorch``, forward and backward, with float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import backend, ops
from kernels.checks import accuracy
from kernels.checks.accuracy import measure
from kernels.checks.cases import Case, step_cases
from kernels.cpu import add_norm, attention, linear

CASES = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for case in step_cases(dtype, batch=2, time=37, heads=2, width=24, vocab=29, rotary=True)
]


@pytest.fixture(autouse=True)
def pytorch() -> Iterator[None]:
    with backend.force("pytorch"):
        yield


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_and_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "KERNELS", "pytorch")
    rows = measure(case, torch.device("cpu"))
    assert rows
    for row in rows:
        # PyTorch rounds gradients of weights to the branch's dtype, and its softmax in other places than user code.
        assert row["rms_error"] <= 2 * row["pytorch_rms_error"] + (1e-6 if case.dtype == torch.float32 else 2e-3), row


def test_dropout_is_pytorchs_forward_and_backward() -> None:
    """With equal scores and the identity as v, the output is the dropped weights themselves, and so is v's gradient."""
    torch.manual_seed(0)
    q, v = torch.zeros(8, 4, 40, 64), torch.eye(40, 64).expand(8, 4, 40, 64).clone().requires_grad_()
    out = ops.attention(q, q, v, 0.25)
    out.backward(torch.eye(40, 64).expand_as(out))
    weights = out.detach()[..., :40] * torch.arange(1, 41)[:, None] * 0.75
    kept = weights[..., torch.ones(40, 40).tril().bool()]
    torch.testing.assert_close(kept, kept.round(), atol=1e-5, rtol=0)
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.02)
    assert v.grad is not None
    torch.testing.assert_close(v.grad[..., :40], out[..., :40].transpose(2, 3))

    x = torch.ones(400, 48, requires_grad=True)
    total, _ = ops.add_dropout_layer_norm(torch.zeros(400, 48), x, torch.ones(48), torch.zeros(48), 0.25)
    total.sum().backward()
    torch.testing.assert_close(x.grad, total)
    assert float((total == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_a_seed_still_drops_what_the_kernels_drop() -> None:
    x, seed = torch.ones(30, 48), torch.tensor([5])
    norm = torch.ones(48), torch.zeros(48)
    found = ops.add_dropout_layer_norm(x, x, *norm, 0.2, seed)
    with backend.force("reference"):
        expected = ops.add_dropout_layer_norm(x, x, *norm, 0.2, seed)
    torch.testing.assert_close(found, expected)


def test_nothing_of_ours_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("ours")

    for module, name in ((attention, "attention"), (add_norm, "add_dropout_layer_norm"), (linear, "linear")):
        monkeypatch.setattr(module, name, refuse)
    q = torch.randn(2, 2, 300, 16).bfloat16()
    assert torch.equal(ops.attention(q, q, q), F.scaled_dot_product_attention(q, q, q, is_causal=True))
    x, weight, bias = torch.randn(300, 16), torch.ones(16), torch.zeros(16)
    assert torch.equal(ops.add_dropout_layer_norm(x, x, weight, bias)[1], F.layer_norm(x + x, (16,), weight, bias))
    narrow = x.bfloat16(), torch.ones(4, 16).bfloat16(), torch.ones(4).bfloat16()
    assert torch.equal(ops.linear(*narrow), F.linear(*narrow))
    assert ops.attention(q, q, q, 0.2).isfinite().all()
    with backend.force("auto"), pytest.raises(AssertionError, match="ours"):
        ops.attention(q, q, q, 0.2)

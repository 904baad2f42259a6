"""Test the check before a training: only a broken kernel is named, and no random generator changes its state."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kernels import backend, ops
from kernels.checks import self_check
from kernels.checks.cases import step_cases
from tests.kernels.marks import DEVICE, NEEDS_KERNELS, needs_interpreter

pytestmark = NEEDS_KERNELS
pytest.importorskip("triton")
from kernels.gpu import attention, cross_entropy, layer_norm  # noqa: E402

CASES = step_cases(torch.bfloat16, 2, 20, 2, 24, vocab=29, dropout_p=0.2, attention_dropout_p=0.1, rotary=True)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    yield
    backend.forget()


def test_kernels_that_work_and_a_generator_that_stays() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert self_check.failures(CASES, DEVICE) == {}
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_wrong_numbers_name_their_op(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.backward

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        d_q, d_k, d_v = right(*arguments)
        return d_q, d_k * 1.02, d_v

    monkeypatch.setattr(attention, "backward", wrong)
    found = self_check.failures(CASES, DEVICE)
    assert list(found) == ["attention"]
    assert "d_k: error" in found["attention"]


def test_a_kernel_that_does_not_compile_names_its_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("PTXAS error: ptxas failed\nwith a long log")

    monkeypatch.setattr(layer_norm._forward_kernel, "launch", fail)
    found = self_check.failures(CASES, DEVICE)
    assert found == dict.fromkeys(("layer_norm", "add_dropout_layer_norm"), "RuntimeError: PTXAS error: ptxas failed")


def test_an_op_that_falls_back_gives_pytorchs_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "forward", lambda *_: pytest.fail("the kernel"))
    backend.fall_back("cross_entropy", "wrong")
    logits = torch.zeros(3, 7, device=DEVICE)
    with backend.force("triton"):
        loss = ops.cross_entropy(logits, torch.arange(3, device=DEVICE))
    assert float(loss) == pytest.approx(1.9459, abs=1e-4)


@needs_interpreter
def test_a_fault_of_the_gpu_ends_with_one_line_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with CUDA, the error appears at the first wait and at every later call."""

    def fault(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(self_check, "measure", fault)
    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    with pytest.raises(self_check.DeviceFaultError, match="CHARFORMER_KERNELS=pytorch") as caught:
        self_check.failures(CASES, torch.device("cuda"))
    assert "\n" not in str(caught.value)
    assert "illegal memory access" in str(caught.value)

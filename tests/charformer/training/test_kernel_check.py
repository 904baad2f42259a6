import logging
from collections.abc import Iterator

import pytest
import torch

from charformer.config import ModelConfig
from charformer.errors import UserError
from charformer.training.distributed import ONE_PROCESS
from charformer.training.kernel_check import check_kernels
from kernels import backend
from tests.kernels.marks import needs_interpreter

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, dropout=0.1, attention_dropout=0.1, vocab_size=11)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    backend.forget()


def check() -> None:
    check_kernels(CONFIG, CPU, torch.float32, ONE_PROCESS)


@needs_interpreter
def test_kernels_that_work_are_kept_and_no_random_number_is_drawn(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with backend.force("triton"), caplog.at_level(logging.WARNING):
        check()
        assert set(backend.on(CPU).values()) == {"triton"}
    assert torch.equal(torch.rand(4), expected)
    assert not caplog.records


@needs_interpreter
@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_kernel_that_fails_is_replaced_and_named(
    fault: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.gpu import layer_norm

    forward = layer_norm.forward

    def broken(*args: object) -> object:
        if fault == "raises":
            raise RuntimeError("out of resources: shared memory")
        out, *rest = forward(*args)  # type: ignore[arg-type]
        return (out * 1.01, *rest)

    monkeypatch.setattr(layer_norm, "forward", broken)
    with backend.force("triton"), caplog.at_level(logging.WARNING):
        check()
        assert backend.on(CPU)["layer_norm"] == "pytorch"
        assert backend.on(CPU)["attention"] == "triton"
    assert "the kernel of layer_norm does not work here" in caplog.text


def test_nothing_is_tried_where_no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("charformer.training.kernel_check.failures", fail)
    check()


def test_a_fault_of_the_gpu_is_one_line_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.checks.self_check import DeviceFaultError

    def fail(*_: object) -> None:
        raise DeviceFaultError("a fault of the GPU; set CHARFORMER_KERNELS=pytorch")

    monkeypatch.setattr("charformer.training.kernel_check.failures", fail)
    monkeypatch.setattr(backend, "on", lambda _: {"attention": "triton"})
    with pytest.raises(UserError, match="CHARFORMER_KERNELS=pytorch"):
        check()

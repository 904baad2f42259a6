"""Test which backend an op runs: the environment variable, the requirements on a card, and the messages."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from kernels import backend, ops
from tests.kernels.marks import needs_interpreter

ATTENTION = """
import torch
from kernels import ops
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 9, 16)
try:
    print(float(ops.attention(q, k, v).sum()))
except Exception as error:
    print(type(error).__name__, error)
import sys
print("triton" in sys.modules)
"""


@cache
def run(**environment: str) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET",)}
    process = subprocess.run(
        [sys.executable, "-c", ATTENTION], env=environ | environment, capture_output=True, text=True, check=True
    )
    return process.stdout.splitlines()


def test_plain_cpu_training_never_imports_triton() -> None:
    assert run()[1] == "False"
    assert run(CHARFORMER_KERNELS="auto") == run()
    assert run(CHARFORMER_KERNELS="") == run()


@needs_interpreter
def test_the_environment_chooses() -> None:
    plain = float(run()[0])
    forced = run(CHARFORMER_KERNELS="triton", TRITON_INTERPRET="1")
    assert float(forced[0]) == pytest.approx(plain, rel=1e-5)
    assert forced[1] == "True"
    referred = run(CHARFORMER_KERNELS="reference")
    assert float(referred[0]) == pytest.approx(plain, rel=1e-5)


@needs_interpreter
def test_kernels_without_gpu_or_interpreter_say_what_they_need() -> None:
    found = run(CHARFORMER_KERNELS="triton")[0]
    assert found.startswith("KernelsUnavailableError")
    assert "NVIDIA GPU" in found
    assert "TRITON_INTERPRET=1" in found


def test_kernels_without_triton_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TRITON", False)
    x = torch.ones(2, 16)
    with backend.force("triton"), pytest.raises(backend.KernelsUnavailableError, match="Triton is not installed"):
        ops.layer_norm(x, x[0], x[0])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Let PyTorch report a card that can run the kernels, on which nothing runs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(backend, "_driver_failure", lambda: None)
    backend.forget()
    yield torch.device("cuda")
    backend.forget()


@needs_interpreter
def test_what_a_card_needs(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.missing(gpu) is None
    assert backend.describe(gpu) == "kernels: Triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend.missing(gpu) is None, "a device is asked once"
    backend.forget()
    assert "sm_80" in (backend.missing(gpu) or "")
    assert backend.describe(gpu).startswith("kernels: plain PyTorch (")
    with backend.force("triton"), pytest.raises(backend.KernelsUnavailableError, match="sm_80"):
        backend.check(gpu)


@needs_interpreter
def test_amds_cards_and_the_interpreter_are_no_place_for_compiled_kernels(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        backend.forget()
        assert "NVIDIA" in (backend.missing(gpu) or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in (backend.missing(gpu) or "")


@needs_interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")
def test_a_driver_that_cannot_be_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    backend.forget()
    reason = backend.missing(torch.device("cuda"))  # Triton itself reports that there is no driver
    backend.forget()
    assert reason is not None
    assert reason.startswith("Triton cannot build its driver: ")


def test_without_triton_the_ops_are_pytorchs(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TRITON", False)
    assert backend.describe(gpu).startswith("kernels: plain PyTorch (Triton is not installed")


def test_an_unknown_backend_is_refused() -> None:
    found = run(CHARFORMER_KERNELS="cuda")[0]
    assert found.startswith("KernelsUnavailableError")
    assert "auto, triton, reference, pytorch" in found


def test_force_ends_with_its_block_even_by_an_error() -> None:
    with pytest.raises(ZeroDivisionError), backend.force("reference"):
        raise ZeroDivisionError
    assert backend.chosen() == "auto"


@needs_interpreter
def test_an_op_that_has_fallen_back_runs_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 16)
    with backend.force("triton"):
        assert backend.runs_registered_op("layer_norm", x)
        backend.fall_back("layer_norm", "wrong")
        assert not backend.runs_registered_op("layer_norm", x)
        assert backend.runs_registered_op("cross_entropy", x)
        assert backend.on(x.device) == dict.fromkeys(backend.OPS, "triton") | {"layer_norm": "pytorch"}
        assert backend.fallen() == {"layer_norm": "wrong"}
        backend.forget()
        assert backend.runs_registered_op("layer_norm", x)

import os
import subprocess
import sys

import pytest
import torch

from charformer import device
from charformer.config import DEVICES
from charformer.errors import UserError
from charformer.presets import DEFAULT_PRESETS
from charformer.training.estimate import RESERVE
from tests.kernels.marks import NEEDS_GPU

CPU = torch.device("cpu")


def test_devices_and_dtypes_are_chosen() -> None:
    assert device.choose_device("cpu") == CPU
    assert device.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.choose_dtype("float32", CPU) == torch.float32
    assert device.choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert device.choose_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_f": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16),
     ({"avx512_bf16": True}, torch.bfloat16)],
)  # fmt: skip
def test_bfloat16_is_for_processors_that_have_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.choose_dtype("auto", CPU) == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="finds no CUDA GPU"):
        device.choose_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without an Apple GPU")
def test_a_missing_apple_gpu_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="finds no Apple GPU here; pass `device` cpu"):
        device.choose_device("mps")


def test_every_device_has_a_preset_and_a_reserve_of_memory() -> None:
    assert DEFAULT_PRESETS.keys() == RESERVE.keys() == set(DEVICES) - {"auto"}


def test_bfloat16_is_not_chosen_for_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert device.choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("target", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_tensor_is_copied_to_a_device(target: str) -> None:
    source, place = torch.arange(6).reshape(2, 3), torch.device(target)
    out = torch.zeros(2, 3, dtype=torch.int64, device=place)
    assert device.copy_to_device(source, place, out) is out
    assert torch.equal(out.cpu(), source)
    assert torch.equal(device.copy_to_device(source, place).cpu(), source)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_peak_memory_is_this_process_s_own() -> None:
    ballast = bytearray(800_000_000)
    script = (
        "import torch; from charformer.device import memory_bytes; cpu = torch.device('cpu');"
        "before = memory_bytes(cpu); x = bytearray(200_000_000); y = len(x); del x; print(before, memory_bytes(cpu))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = (int(number) for number in shown.split())
    assert len(ballast) > before > 50e6
    assert after - before == pytest.approx(200e6, rel=0.05)


def test_float32_is_float32_whatever_the_environment_says() -> None:
    script = (
        "import torch; from charformer.device import choose_device; before = torch.get_float32_matmul_precision();"
        "choose_device('auto'); print(before, torch.get_float32_matmul_precision())"
    )
    asked = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=asked, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["high", "highest"]

"""A small GPT trained on real text through the kernels has the loss curve of the plain ops, dropout and all."""

import pytest
import torch

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from kernels import backend, ops
from tests.kernels.marks import needs_gpu, needs_interpreter

LENGTH = 12


def losses(text: str, name: str, device: str, steps: int = 12, dtype: torch.dtype = torch.float32) -> list[float]:
    symbols = sorted(set(text))
    ids = torch.tensor([symbols.index(character) for character in text], device=device)
    config = ModelConfig(2, n_head=2, n_embd=48, block_size=LENGTH, dropout=0.2, vocab_size=len(symbols))
    torch.manual_seed(0)
    model = GPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    starts = torch.randint(len(ids) - LENGTH, (steps, 1), generator=torch.Generator().manual_seed(0))
    found = []
    with backend.force(name):
        for step in range(steps):
            windows = torch.stack([ids[start : start + LENGTH + 1] for start in starts[step]])
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(windows[:, :-1])
            loss = ops.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@needs_interpreter
def test_interpreted(english: str) -> None:
    plain, kernels = losses(english, "reference", "cpu"), losses(english, "triton", "cpu")
    assert plain[-1] < plain[0] - 0.5
    assert kernels == pytest.approx(plain, abs=2e-4)  # rounding alone; the steps of AdamW make it grow


@needs_interpreter
def test_interpreted_under_autocast(english: str) -> None:
    plain, kernels = (losses(english, name, "cpu", 4, torch.bfloat16) for name in ("reference", "triton"))
    assert kernels == pytest.approx(plain, abs=0.03)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(english: str, dtype: torch.dtype) -> None:
    plain, kernels = (losses(english, name, "cuda", 30, dtype) for name in ("reference", "triton"))
    assert kernels == pytest.approx(plain, abs=2e-3 if dtype == torch.float32 else 0.03)

"""Check every memory access of the kernels, with tensors at the edge of an allocation."""

from typing import Any

import pytest
import torch

from kernels import backend, ops
from tests.kernels.marks import needs_interpreter

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402

from kernels.gpu.block_sizes import Tile  # noqa: E402
from kernels.gpu.launch import kernel  # noqa: E402
from tests.kernels.gpu.memory_checker import checked  # noqa: E402

pytestmark = needs_interpreter


def at_the_edge(x: torch.Tensor) -> torch.Tensor:
    """Return the same values in an allocation that ends with them and starts at an odd element."""
    flat = torch.zeros(x.numel() + 3, dtype=x.dtype)
    flat[3:] = x.flatten()
    return flat[3:].view(x.shape).requires_grad_(x.is_floating_point())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("time", "width"), [(1, 16), (33, 20), (64, 64), (100, 48)])
@pytest.mark.parametrize("packed", [True, False])
def test_attention(time: int, width: int, packed: bool, dtype: torch.dtype) -> None:
    if packed:
        q, k, v = at_the_edge(random(2, time, 3, 1, width).to(dtype)).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = (at_the_edge(x.to(dtype)) for x in random(3, 2, 1, time, width))
    with checked(), backend.force("triton"):
        out = ops.attention(q, k, v, 0.2, at_the_edge(torch.tensor([5])))
        out.backward(at_the_edge(random(*out.shape).to(dtype)))
    assert out.isfinite().all()


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (1, 384), (5, 35), (5, 384), (260, 1)])
def test_layer_norms(rows: int, channels: int) -> None:
    residual, x, weight, bias = map(at_the_edge, [*random(2, rows, channels), *random(2, channels)])
    with checked(), backend.force("triton"):
        ops.layer_norm(x, weight, bias).backward(at_the_edge(random(rows, channels)))
        results = ops.add_dropout_layer_norm(residual, x, weight, bias, 0.2, at_the_edge(torch.tensor([5])))
        torch.autograd.backward(results, [at_the_edge(random(rows, channels)) for _ in results])
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (residual, x, weight, bias))


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (17, 87), (3, 4100)])
def test_cross_entropy(rows: int, vocab: int) -> None:
    logits, targets = at_the_edge(random(rows, vocab)), at_the_edge(torch.arange(rows) % vocab)
    with checked(), backend.force("triton"):
        ops.cross_entropy(logits, targets).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("time", "heads", "width"), [(1, 1, 2), (5, 3, 20), (3, 17, 128)])
def test_rotary(time: int, heads: int, width: int) -> None:
    qkv = at_the_edge(random(2, time, 3, heads, width))
    cos, sin = (at_the_edge(x).detach() for x in random(2, time, width // 2))
    with checked(), backend.force("triton"):
        results = ops.rotary(qkv, cos, sin)
        torch.autograd.backward(results, [at_the_edge(random(*x.shape)) for x in results])
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


@kernel("x_ptr")
def _copy_kernel(x_ptr, y_ptr, count, shift, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets + shift, mask=offsets < count), mask=offsets < count)


def copy(**changes: Any) -> None:
    arguments = {"x_ptr": torch.ones(10), "y_ptr": torch.empty(10), "count": 10, "shift": 0, "BLOCK": 16} | changes
    with checked():
        _copy_kernel.launch(1, Tile(1, 16, 1, 1), arguments)


def test_the_checker_passes_what_is_right() -> None:
    copy()


def test_the_checker_catches_a_store_out_of_bounds() -> None:
    with pytest.raises(InterpreterError, match="store outside"):
        copy(y_ptr=torch.empty(9))


@pytest.mark.parametrize("shift", [1, -1, 2**20])
def test_the_checker_catches_a_load_out_of_bounds(shift: int) -> None:
    with pytest.raises(InterpreterError, match="load outside"):
        copy(shift=shift)


def test_the_checker_catches_a_load_of_what_nothing_wrote() -> None:
    with checked():
        unwritten = torch.empty(10)
    with pytest.raises(InterpreterError, match="nothing wrote"):
        copy(x_ptr=unwritten)

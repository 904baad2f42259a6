"""Test the registered ops: opcheck, their own gradients, torch.compile, autocast."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from kernels import backend, custom_ops, ops, reference
from tests.kernels.marks import needs_gpu, needs_interpreter, random

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def arguments() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    seed = torch.tensor([7])
    q, k, v = random(2, 9, 3, 2, 16).permute(2, 0, 3, 1, 4)
    x, residual, weight, bias = random(2, 5, 32), random(2, 5, 32), random(32), random(32)
    logits, targets = random(6, 13), torch.arange(6)
    out, lse = reference.attention_forward(q, k, v, 0.2, seed)
    y, mean, rstd = reference.layer_norm_forward(x, weight, bias, 1e-5, x.dtype)
    loss, row_lse, count = reference.cross_entropy_forward(logits, targets, -100)
    return {
        "attention": (custom_ops.attention, (q, k, v, 0.2, seed)),
        "attention without dropout": (custom_ops.attention, (q, k, v, 0.0, None)),
        "attention_backward": (custom_ops.attention_backward, (out, q, k, v, out, lse, 0.2, seed)),
        "rotary": (custom_ops.rotary, (random(2, 5, 3, 2, 16), random(5, 8), random(5, 8))),
        "rotary backward": (custom_ops.rotary_backward, (q, k, v, random(9, 8), random(9, 8))),
        "layer_norm": (custom_ops.layer_norm, (x, weight, bias, 1e-5)),
        "layer_norm_backward": (custom_ops.layer_norm_backward, (y, x, weight, mean, rstd)),
        "add + norm": (custom_ops.add_dropout_layer_norm, (residual, x, weight, bias, 0.2, seed, 1e-5)),
        "add + norm of two dtypes": (
            custom_ops.add_dropout_layer_norm,
            (residual, x.bfloat16(), weight, bias, 0.2, seed, 1e-5),
        ),
        "add + norm backward": (
            custom_ops.add_dropout_layer_norm_backward,
            (x, y, x, weight, mean, rstd, 0.2, seed),
        ),
        "last add + norm backward": (
            custom_ops.add_dropout_layer_norm_backward,
            (None, y, x, weight, mean, rstd, 0.2, seed),
        ),
        "cross_entropy": (custom_ops.cross_entropy, (logits, targets, -100)),
        "cross_entropy_backward": (
            custom_ops.cross_entropy_backward,
            (loss, logits, targets, row_lse, count, -100),
        ),
    }


@pytest.mark.parametrize("backend_name", [pytest.param("triton", marks=needs_interpreter), "reference"])
@pytest.mark.parametrize("name", arguments())
def test_opcheck(name: str, backend_name: str) -> None:
    op, values = arguments()[name]
    differentiable = "backward" not in name
    values = tuple(
        value.detach().clone().requires_grad_()
        if differentiable and isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value in values
    )
    with backend.force(backend_name):
        torch.library.opcheck(op, values)


@pytest.mark.parametrize("op", ["attention", "layer_norm", "add_dropout_layer_norm", "cross_entropy", "rotary"])
def test_written_out_gradients_are_autograds(op: str) -> None:
    """Compare the reference's backward passes with autograd through its forward passes, in float64."""
    double = [random(2, 3, 9, 16).double() for _ in range(3)]
    seed = torch.tensor([11])
    weight, bias = random(16).double(), random(16).double() + 1
    logits, targets = random(9, 16).double(), torch.tensor([0, 1, 2, -100, 4, 5, 15, -100, 8])
    inputs: dict[str, list[torch.Tensor]] = {
        "attention": double,
        "layer_norm": [double[0], weight, bias],
        "add_dropout_layer_norm": [*double[:2], weight, bias],
        "cross_entropy": [logits],
        "rotary": [random(2, 5, 3, 3, 16).double()],
    }
    functions: dict[str, Callable[..., Any]] = {
        "attention": lambda q, k, v: ops.attention(q, k, v, 0.3, seed),
        "layer_norm": ops.layer_norm,
        "add_dropout_layer_norm": lambda r, x, w, b: ops.add_dropout_layer_norm(r, x, w, b, 0.3, seed),
        "cross_entropy": lambda x: ops.cross_entropy(x, targets),
        "rotary": lambda qkv: ops.rotary(qkv, random(5, 8).double(), random(5, 8, seed=1).double()),
    }

    def gradients(name: str) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs[op]]
        with backend.force(name):
            results = functions[op](*leaves)
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.backward(results, [torch.linspace(1, 2, y.numel()).view_as(y).to(y) for y in results])
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for found, expected in zip(gradients("reference"), gradients("auto"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def training_step(device: str = "cpu") -> tuple[GPT, Callable[[torch.Tensor], torch.Tensor]]:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=13, n_layer=2, n_head=2, n_embd=32, block_size=12, dropout=0.2)).to(device)

    def step(ids: torch.Tensor) -> torch.Tensor:
        return ops.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    return model, step


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize(
    "compiler",
    [
        "eager",
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler")),
    ],
)
def test_the_whole_training_step_compiles(compiler: str, name: str) -> None:
    ids = torch.randint(13, (3, 13), generator=torch.Generator().manual_seed(0))
    found = {}
    for compiled in (False, True):
        model, step = training_step()
        torch.compiler.reset()
        with backend.force(name):
            torch.manual_seed(5)
            model.eval()  # the seeds of compiled dropout are drawn in another order
            loss = (torch.compile(step, backend=compiler, fullgraph=True) if compiled else step)(ids)
            loss.backward()
            model.train()
            assert (torch.compile(step, backend=compiler, fullgraph=True) if compiled else step)(ids).isfinite()
        found[compiled] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for plain, compiled_one in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(compiled_one, plain, atol=1e-5, rtol=1e-4)


@needs_gpu
def test_the_whole_training_step_compiles_on_a_gpu() -> None:
    _, step = training_step("cuda")
    ids = torch.randint(13, (3, 13), device="cuda")
    torch.compile(step, fullgraph=True)(ids).backward()


def test_under_autocast_the_stream_stays_float32_and_the_branches_are_16_bits_wide() -> None:
    model, _ = training_step()
    for name in ("auto", "reference"):
        with backend.force(name), torch.autocast("cpu", torch.bfloat16):
            x = model.tok_emb(torch.arange(5)[None])
            total, norm = ops.add_dropout_layer_norm(x, x.bfloat16(), model.ln_f.weight, model.ln_f.bias)
        assert (total.dtype, norm.dtype) == (torch.float32, torch.bfloat16)


def test_under_autocast_the_reference_keeps_its_precision() -> None:
    q, k, v = ((4 * torch.randn(2, 2, 40, 16)).bfloat16().requires_grad_() for _ in range(3))

    def results() -> tuple[torch.Tensor, ...]:
        out = ops.attention(q, k, v)
        return out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))

    with backend.force("reference"):
        expected = results()
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, results(), expected))

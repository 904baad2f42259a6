"""The op calls that the checks make: one list for accuracy, compilation and benchmarks.

Shapes: B batch, H heads, T time, D head width, N rows, C channels, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops, reference

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SEED = 2**40 + 7  # of dropout

Op = Callable[..., Any]  # inputs -> a tensor, or several


class Case(NamedTuple):
    """One call of an op of ``kernels.ops``, forward and backward.

    Attributes:
        time: positions; a norm and a loss have ``batch`` x ``time`` rows.
        width: the width of a head or of a row, or the size of the vocabulary.
        variant: for attention, "plain" (separate inputs), "packed" (views of a (B, T, 3, H, D)) or "odd" (rows that
            begin at no multiple of the alignment); for a norm, "plain", "narrow" (the residual stream and the weights
            have 16 bits too, as in sampling) or "last" (nothing reads the sum).
    """

    op: str
    dtype: torch.dtype
    time: int
    width: int
    dropout_p: float = 0.0
    variant: str = "plain"
    batch: int = 2
    heads: int = 2

    def __str__(self) -> str:
        return f"{self.op}-{DTYPE_NAMES[self.dtype]}-{self.time}x{self.width}-{self.dropout_p}-{self.variant}"

    @property
    def aligned(self) -> bool:
        """Return whether all rows begin at multiples of the alignment."""
        return self.width % 16 == 0 and self.variant != "odd"


def cases() -> Iterator[Case]:
    """Yield the calls on which every kernel is checked, in each dtype.

    They cover ragged and whole tiles, widths that are and are not powers of two, aligned and unaligned rows, and calls
    with and without dropout.
    """
    for dtype in DTYPE_NAMES:
        for width in (16, 20, 32, 48, 64, 96, 128):
            yield Case("attention", dtype, 33, width, 0.0, "packed")
            yield Case("attention", dtype, 100, width, 0.2, "plain")
            yield Case("attention", dtype, 64, width, 0.0, "odd")
            yield Case("attention", dtype, 37, width, 0.2, "odd")
        yield Case("attention", dtype, 1, 64, 0.2, "packed")
        for width in (16, 35, 256, 383, 384, 768, 1025, 2048):
            yield Case("layer_norm", dtype, 7, width, variant="narrow")
            for p in (0.0, 0.2):
                yield Case("add_dropout_layer_norm", dtype, 7, width, p)
                yield Case("add_dropout_layer_norm", dtype, 7, width, p, "last")
            if dtype != torch.float32:
                yield Case("add_dropout_layer_norm", dtype, 7, width, 0.0, "narrow")
        for width, heads in ((2, 3), (20, 2), (32, 3), (48, 1), (64, 6), (96, 2), (128, 17)):
            yield Case("rotary", dtype, 5, width, heads=heads)
        for time, width in ((1, 1), (7, 15), (7, 16), (33, 65), (19, 87), (16, 96), (5, 250), (5, 256), (5, 1000)):
            yield Case("cross_entropy", dtype, time, width, batch=1)
        for time, width in ((5, 1024), (5, 5000), (2, 50304)):
            yield Case("cross_entropy", dtype, time, width, batch=1)


def step_cases(
    dtype: torch.dtype,
    batch: int,
    time: int,
    heads: int,
    width: int,
    vocab: int,
    dropout_p: float = 0.0,
    attention_dropout_p: float = 0.0,
    rotary: bool = False,
) -> list[Case]:
    """Return the calls of one training step of a model, under autocast if ``dtype`` has 16 bits.

    Args:
        width: the width of a head. vocab: the number of distinct characters.
    """
    channels = heads * width
    layout = "plain" if rotary else "packed"
    return [
        *([Case("rotary", dtype, time, width, batch=batch, heads=heads)] if rotary else []),
        Case("attention", dtype, time, width, attention_dropout_p, layout, batch, heads),
        Case("layer_norm", torch.float32, time, channels, batch=batch),
        Case("add_dropout_layer_norm", dtype, time, channels, dropout_p, batch=batch),
        Case("cross_entropy", dtype, time, vocab, batch=batch),
    ]


def make_inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return the op's tensors by name, the same on every device; differentiable inputs are leaves of a graph."""
    generator = torch.Generator().manual_seed(case.time * 1000 + case.width)

    def draw(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    rows = case.batch * case.time
    if case.op == "attention":
        shape = (case.batch, case.heads, case.time, case.width)
        if case.variant == "plain":
            tensors = dict(zip("qkv", (draw(*shape) for _ in range(3)), strict=True))
        else:
            packed = draw(case.batch, case.time, 3, case.heads, case.width + (case.variant == "odd"))
            tensors = dict(zip("qkv", packed[..., : case.width].permute(2, 0, 3, 1, 4), strict=True))
    elif case.op == "rotary":
        angles = torch.rand(case.time, case.width // 2, generator=generator).mul_(100).to(device)
        tensors = {
            "qkv": draw(case.batch, case.time, 3, case.heads, case.width),
            "cos": angles.cos(),
            "sin": angles.sin(),
        }
    elif case.op == "cross_entropy":
        targets = torch.randint(case.width, (rows,), generator=generator).to(device)
        targets[1::5] = -100
        tensors = {"logits": 4 * draw(rows, case.width), "targets": targets}
    else:
        stream = case.dtype if case.variant == "narrow" else torch.float32
        tensors = {"residual": draw(rows, case.width, dtype=stream)} if case.op == "add_dropout_layer_norm" else {}
        tensors["x"] = draw(rows, case.width)
        tensors |= {name: draw(case.width, dtype=stream) for name in ("weight", "bias")}
    constant = ("cos", "sin", "targets")
    return {name: x.detach().requires_grad_(name not in constant) for name, x in tensors.items()}


def op(case: Case, seed: Tensor | None = None, module: ModuleType = ops) -> Op:
    """Return the op of ``kernels.ops``, or of ``kernels.reference``, with the case's dropout."""
    function: Op = getattr(module, case.op)
    if case.op in ("attention", "add_dropout_layer_norm"):
        return partial(function, dropout_p=case.dropout_p, seed=seed)
    return function


def plain_op(case: Case, seed: Tensor | None = None) -> Op:
    """Return the op as a user would write it in PyTorch, in the dtype of its inputs.

    With a seed it drops the same elements as the kernel with that seed; without one it uses PyTorch's own dropout.
    """
    p = case.dropout_p

    def drop(x: Tensor) -> Tensor:
        if not p:
            return x
        if seed is None:
            return F.dropout(x, p)
        mask = reference.keep_mask(x.numel() // x.shape[-1], x.shape[-1], p, seed)
        return x * (mask.view_as(x).to(x.dtype) / (1 - p))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return drop(scores.softmax(-1)) @ v

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype))

    def add_dropout_layer_norm(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + drop(x)
        return total, F.layer_norm(total, weight.shape, weight, bias).to(x.dtype)

    def rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return rotated(q, cos, sin), rotated(k, cos, sin), v

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    functions: dict[str, Op] = {
        "attention": attention,
        "layer_norm": layer_norm,
        "add_dropout_layer_norm": add_dropout_layer_norm,
        "cross_entropy": F.cross_entropy,
        "rotary": rotary,
    }
    return functions[case.op]


def make_gradients(case: Case, outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Return the gradients that reach the op's outputs, the same in every dtype and on every device."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(y.shape, generator=generator).to(case.dtype).to(y) for y in outputs]
    if case.op in ("attention", "rotary"):
        drawn = [y.transpose(1, 2).contiguous().transpose(1, 2) for y in drawn]  # as the next op lays them out
    return [None if case.variant == "last" and not number else y for number, y in enumerate(drawn)]


def run(function: Op, case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the function's results and the gradients of its inputs, by name."""
    outputs = function(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    reached = [(y, d_y) for y, d_y in zip(outputs, make_gradients(case, outputs), strict=True) if d_y is not None]
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    gradients = torch.autograd.grad([y for y, _ in reached], list(leaves.values()), [d_y for _, d_y in reached])
    found = {f"out{number}": y.detach() for number, y in enumerate(outputs)}
    return found | {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}

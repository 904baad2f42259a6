"""Predict the best that a card could do, from a shape alone: FLOPs, bytes and floor times of every op.

    python -m kernels.checks.roofline --card rtx-3050

A floor is the longer of two times: the matrix products at the card's peak, and the memory traffic at its bandwidth
(Williams et al. 2009, "Roofline"). A kernel reads or writes each of its tensors once, as if caches were perfect.
"Unfused" is one PyTorch kernel for every operator of the baseline's model. In 16 bits the residual stream, which the
layer norms read, stays float32, as under autocast.
"""

import argparse
import sys
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kernels.checks.cards import CARDS, Card
from kernels.checks.cli import positive
from kernels.gpu import block_sizes

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOAT32, INT64 = 4, 8
FORWARD, BACKWARD = "forward", "backward"
MATRIX_PRODUCTS = "matrix products"


class Shape(NamedTuple):
    """A model and its batch; the defaults are those of the preset `baseline`, under bf16 autocast."""

    batch: int = 32
    time: int = 384
    heads: int = 6
    width: int = 64  # of a head
    vocab: int = 87
    layers: int = 6
    dtype: str = "bf16"
    rotary: bool = False  # positions, in place of learned ones

    @property
    def rows(self) -> int:
        return self.batch * self.time

    @property
    def channels(self) -> int:
        return self.heads * self.width


class Work(NamedTuple):
    """The work of one call: FLOPs of its matrix products, and bytes that it reads and writes in memory."""

    flops: int
    fused_bytes: int
    unfused_bytes: int


class Row(NamedTuple):
    """A prediction for one op in one direction; FLOPs, bytes and floor times in seconds are for one call."""

    op: str
    direction: str
    calls: int  # in one training step
    work: Work
    fused_seconds: float
    unfused_seconds: float


def work(shape: Shape) -> dict[tuple[str, str], Work]:
    """Return the work of one call, by op of ``kernels.ops`` and direction, and of a step's matrix products."""
    ops = {
        "attention": _attention(shape),
        "rotary": _rotary(shape),
        "layer_norm": _layer_norm(shape),
        "add_dropout_layer_norm": _add_dropout_layer_norm(shape),
        "cross_entropy": _cross_entropy(shape),
        MATRIX_PRODUCTS: _matrix_products(shape),
    }
    return {(op, way): one for op, pair in ops.items() for way, one in zip((FORWARD, BACKWARD), pair, strict=True)}


def predict(card: Card, shape: Shape) -> list[Row]:
    """Return a row for every op of a step and direction: its work, and the least time that it takes on ``card``."""
    calls = {"attention": shape.layers, "add_dropout_layer_norm": 2 * shape.layers}
    calls["rotary"] = shape.layers if shape.rotary else 0

    def floor(flops: int, moved: int) -> float:
        return max(flops / card.peak(shape.dtype), moved / (card.bandwidth_gb_s * 1e9))

    return [
        Row(op, way, calls.get(op, 1), one, floor(one.flops, one.fused_bytes), floor(one.flops, one.unfused_bytes))
        for (op, way), one in work(shape).items()
        if calls.get(op, 1)
    ]


def step_seconds(rows: list[Row]) -> tuple[float, float]:
    """Return the floor of the calls of one training step in ``rows``, fused and unfused, in seconds."""
    return sum(row.calls * row.fused_seconds for row in rows), sum(row.calls * row.unfused_seconds for row in rows)


def _attention(shape: Shape) -> tuple[Work, Work]:
    size = BYTES[shape.dtype]
    branch = shape.rows * shape.channels * size  # any of q, k, v, out and their gradients
    stats = shape.rows * shape.heads * FLOAT32  # lse, or delta
    scores = shape.batch * shape.heads * shape.time**2
    # 2 FLOPs for each of D, and half of the scores are causal. Kernels compute the tiles on the diagonal whole, which
    # adds a tile's share of T, 17 % for 64 in 384; a floor leaves that out.
    product = scores * shape.width
    forward = Work(
        2 * product,
        4 * branch + stats,  # q, k, v -> out, lse
        # Over all of T x T: the product writes; scale, mask, softmax and dropout each read and write, dropout also its
        # mask of one byte; the second product reads.
        4 * branch + scores * ((1 + 4 * 2 + 1) * size + 1),
    )
    backward = Work(
        7 * product,  # dq 3, dkv 4: both recompute the weights and their gradient
        # dq: q, k, v, d_out, out, lse -> d_q, delta. dkv: q, k, v, d_out, lse, delta -> d_k, d_v.
        12 * branch + 4 * stats,
        # The product for the weights' gradient writes, that for d_v reads the weights; dropout (with its mask), mask
        # and scale each read and write; softmax reads gradient and result, writes; d_q and d_k read.
        8 * branch + scores * ((1 + 1 + 3 * 2 + 3 + 2) * size + 1),
    )
    return forward, backward


def _rotary(shape: Shape) -> tuple[Work, Work]:
    branch = shape.rows * shape.channels * BYTES[shape.dtype]
    # Programs read the angles, which all heads of a position share, from a cache. Unfused, each half of q and of k
    # takes a multiplication and a multiply-add, which read 1 + 2 halves and write 1 + 1; v is copied.
    one = Work(0, 3 * branch + 3 * branch, 2 * 5 * branch + 2 * branch)
    return one, one  # backward it is the same with q, k and v as inputs


def _layer_norm(shape: Shape) -> tuple[Work, Work]:
    stream, weight = shape.rows * shape.channels * FLOAT32, shape.channels * FLOAT32
    stats = 2 * shape.rows * FLOAT32  # mean, rstd
    forward = 2 * stream + stats + 2 * weight  # PyTorch's forward pass is one kernel as well
    fused = 3 * stream + stats + weight + _weight_gradients(shape)  # d_y, x -> d_x
    unfused = 5 * stream + 2 * stats + 3 * weight  # d_y and x once more, for the gradients of weight and bias
    return Work(0, forward, forward), Work(0, fused, unfused)


def _add_dropout_layer_norm(shape: Shape) -> tuple[Work, Work]:
    elements, weight = shape.rows * shape.channels, shape.channels * FLOAT32
    stream, branch, mask = elements * FLOAT32, elements * BYTES[shape.dtype], elements
    stats = 2 * shape.rows * FLOAT32
    forward = Work(
        0,
        2 * stream + 2 * branch + stats + 2 * weight,  # residual, x -> total, y
        # dropout: x -> dropped, mask. sum: residual, dropped -> total. norm: total -> y.
        (2 * branch + mask) + (2 * stream + branch) + (stream + branch + stats + 2 * weight),
    )
    backward = Work(
        0,
        3 * stream + 2 * branch + stats + weight + _weight_gradients(shape),  # d_total, d_y, total -> d_residual, d_x
        # norm: d_y, total -> d_normed, and both again for weight and bias. sum: d_normed, d_total -> d_residual.
        # dropout: d_residual, mask -> d_x.
        (3 * stream + 2 * branch + 2 * stats + 3 * weight) + 3 * stream + (stream + mask + branch),
    )
    return forward, backward


def _weight_gradients(shape: Shape) -> int:
    """Return the bytes of a layer norm's two-stage sums: partial sums, written and read, then both gradients."""
    programs = min(shape.rows, block_sizes.LAYER_NORM_PROGRAMS)  # for a card of up to 32 multiprocessors
    return 2 * (2 * programs + 1) * shape.channels * FLOAT32


def _cross_entropy(shape: Shape) -> tuple[Work, Work]:
    logits, wide = (shape.rows * shape.vocab * size for size in (BYTES[shape.dtype], FLOAT32))
    targets, lse = shape.rows * INT64, shape.rows * FLOAT32
    programs = -(-shape.rows // block_sizes.cross_entropy(1 << (shape.vocab - 1).bit_length()).rows)
    sums = 2 * 2 * programs * FLOAT32  # losses and counts, written and read
    forward = Work(
        0,
        logits + targets + lse + sums,
        logits + wide + targets,  # the log-softmax reads and writes; the loss reads one element per row
    )
    backward = Work(
        0,
        2 * logits + targets + lse,
        # The loss writes a number a row, zeros elsewhere. log-softmax: that gradient and its own result -> d_logits.
        (targets + wide) + (2 * wide + logits),
    )
    return forward, backward


def _matrix_products(shape: Shape) -> tuple[Work, Work]:
    """Return the work of the linears (qkv, proj, the MLP's two, head): 2 FLOPs per weight and character, 4 backward."""
    channels, size = shape.channels, BYTES[shape.dtype]
    weights = shape.layers * 12 * channels**2 + channels * shape.vocab
    # Inputs and outputs, in units of C: 1 + 3, 1 + 1, 1 + 4 and 4 + 1.
    activations = shape.rows * (shape.layers * 16 * channels + channels + shape.vocab)
    flops, moved = 2 * weights * shape.rows, (weights + activations) * size
    # Backward there are two matmuls, for the input's gradient and for the weight's, which each move as much.
    return Work(flops, moved, moved), Work(2 * flops, 2 * moved, 2 * moved)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.checks.roofline", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--card", choices=CARDS, default="rtx-3050", help="(default: %(default)s)")
    for name, meaning in (
        ("batch", "sequences"),
        ("time", "characters of each"),
        ("heads", "of attention"),
        ("width", "of a head"),
        ("vocab", "distinct characters"),
        ("layers", "blocks"),
    ):
        default = Shape._field_defaults[name]
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--rotary", action="store_true", help="positions are rotary")
    parser.add_argument("--dtype", choices=BYTES, default=Shape().dtype, help="(default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    card, shape = CARDS[options.pop("card")], Shape(**options)
    console = Console()
    for table in _tables(card, shape):
        console.print(table)
    return 0


def _tables(card: Card, shape: Shape) -> tuple[Table, Table]:
    rows = predict(card, shape)
    peak = f"{card.peak(shape.dtype) / 1e12:.1f} TFLOP/s in {shape.dtype}, {card.bandwidth_gb_s:g} GB/s"
    calls = Table(title=f"one call, predicted: {card.name}, {peak}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    step = Table(title=f"one step of {shape.rows:,} characters, predicted", box=SIMPLE_HEAD)
    for table, names, figures in (
        (calls, ("op", "pass"), ("GFLOP", "MB fused", "unfused", "ms fused", "unfused")),
        (step, ("op",), ("calls", "ms fused", "unfused")),
    ):
        for name in names:
            table.add_column(name)
        for name in figures:
            table.add_column(name, justify="right")
    for op, direction, _, one, *seconds in rows:
        amounts = [one.flops / 1e9, one.fused_bytes / 1e6, one.unfused_bytes / 1e6]
        floors = [f"{1e3 * second:.3f}" for second in seconds]
        calls.add_row(op, direction, *(f"{amount:.1f}" for amount in amounts), *floors)
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        step.add_row(op, str(mine[0].calls), *(f"{1e3 * second:.2f}" for second in step_seconds(mine)))
    step.add_section()
    step.add_row("all", "", *(f"{1e3 * second:.2f}" for second in step_seconds(rows)))
    step.caption = "without the ReLU, the embeddings and the optimizer"
    return calls, step


if __name__ == "__main__":
    sys.exit(main())

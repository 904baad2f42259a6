"""Builds a checkpoint's graph of standard ONNX operators alone, for other runtimes and the browser.

In 8 and 4 bits the graph rounds weights alone. Onnxruntime fuses DequantizeLinear and MatMul into one operator that
also rounds activations to 8 bits, unless its option session.disable_quant_qdq is "1" (docs/onnx.md).

Shapes are as in export/graph.py; P is the number of characters before the new ones.
"""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from charformer.config import ModelConfig
from charformer.model.rotary import rotary_cache
from charformer.runs.tensors import Tensors
from export.graph import EPSILON, GraphBuilder, Precision, corrected, embedded, embedding, prior_input, relu
from export.quantize import quantize


def portable(config: ModelConfig, tensors: Tensors, precision: Precision) -> onnx.ModelProto:
    """Build the graph of standard operators.

    Inputs: ids (B, T) int64, positions (T,) int64, P to P + T - 1, prior (B, T, V) float32 where the model has an
    n-gram prior, and past_keys.i, past_values.i (B, H, P, D), at first with P = 0. Outputs: logits (B, T, V) float32,
    and present_keys.i, present_values.i (B, H, P + T, D), the next past.
    """
    g = GraphBuilder(precision)
    ids = g.input("ids", TensorProto.INT64, ["B", "T"])
    positions = g.input("positions", TensorProto.INT64, ["T"])
    g.output("logits", TensorProto.FLOAT, ["B", "T", config.vocab_size])
    x = embedding(g, tensors["tok_emb.weight"], ids, "tok_emb")
    if not config.rope_base:
        x = g.node("Add", [x, embedding(g, tensors["pos_emb.weight"], positions, "pos_emb")], "embedding")
    prior = prior_input(g, config) if config.ngram_order else ""
    if prior:
        x = g.node("Add", [x, embedded(g, tensors, prior)], "embedding with prior")
    rotation = _rotation(g, config, positions) if config.rope_base else None
    mask = _mask(g, config, positions)
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        h = _attention(g, config, tensors, layer, _layer_norm(g, tensors, x, f"{block}.ln1"), rotation, mask)
        x = g.node("Add", [x, h], f"{block}.middle")
        h = _linear(g, tensors, _layer_norm(g, tensors, x, f"{block}.ln2"), f"{block}.mlp.fc")
        h = _linear(g, tensors, relu(g, h, f"{block}.mlp.relu", config.relu_power), f"{block}.mlp.proj")
        x = g.node("Add", [x, h], f"{block}.stream")
    h = _layer_norm(g, tensors, x, "ln_f")
    logits = _linear(g, tensors, h, "head")
    g.logits(corrected(g, tensors, logits, h, prior) if prior else logits)
    return g.model()


def _mask(g: GraphBuilder, config: ModelConfig, positions: str) -> str:
    """Add the mask (T, P + T): 0 where a character may look; ahead and beyond a sliding context the lowest number."""
    minus_one, zero, one = (g.constant(str(value), np.array([value])) for value in (-1, 0, 1))
    scalar_zero, scalar_one = g.constant("scalar 0", np.array(0)), g.constant("scalar 1", np.array(1))
    last = g.node("Gather", [positions, minus_one], "last")
    end = g.node("Squeeze", [g.node("Add", [last, one], "after last"), zero], "length")
    keys = g.node("Range", [scalar_zero, end, scalar_one], "key positions")
    queries = g.node("Unsqueeze", [positions, one], "query positions")
    hidden = g.node("Greater", [keys, queries], "ahead")
    if config.rope_base:
        far = g.node("Sub", [queries, keys], "distances")
        behind = g.node("Greater", [far, g.constant("farthest", np.array(config.block_size - 1))], "behind")
        hidden = g.node("Or", [hidden, behind], "hidden")
    lowest = np.finfo(np.float16 if g.precision.bits == 16 else np.float32).min
    inputs = [hidden, g.constant("lowest", np.array(lowest)), g.constant("nothing", np.array(0.0))]
    return g.node("Where", inputs, "mask")


def _rotation(g: GraphBuilder, config: ModelConfig, positions: str) -> list[str]:
    """Add the cosines and sines of the new characters' positions, (T, D / 2) each."""
    tables = zip(("cos", "sin"), rotary_cache(config), strict=True)
    return [embedding(g, table, positions, name) for name, table in tables]


def _rotated(g: GraphBuilder, x: str, rotation: list[str]) -> str:
    """Rotate the pairs of channels of (B, H, T, D), half a head apart."""
    cos, sin = rotation
    a, b = g.nodes("Split", [x], [f"{x}.first", f"{x}.second"], axis=3, num_outputs=2)
    a_cos, a_sin, b_cos, b_sin = (
        g.node("Mul", [half, table], f"{half} {table}") for half in (a, b) for table in (cos, sin)
    )
    rotated = [g.node("Sub", [a_cos, b_sin], f"{a}.rotated"), g.node("Add", [b_cos, a_sin], f"{b}.rotated")]
    return g.node("Concat", rotated, f"{x}.rotated", axis=3)


def _attention(
    g: GraphBuilder,
    config: ModelConfig,
    tensors: Tensors,
    layer: int,
    h: str,
    rotation: list[str] | None,
    mask: str,
) -> str:
    name, width = f"blocks.{layer}.attn", config.n_embd // config.n_head
    heads = g.constant("heads", np.array([0, 0, config.n_head, width]))
    parts = [f"{name}.{part}" for part in ("queries", "keys", "values")]
    g.nodes("Split", [_linear(g, tensors, h, f"{name}.qkv")], parts, axis=2, num_outputs=3)
    q, k, v = (
        g.node("Transpose", [g.node("Reshape", [part, heads], f"{part}.heads")], f"{part}.rows", perm=[0, 2, 1, 3])
        for part in parts
    )
    if rotation is not None:
        q, k = _rotated(g, q, rotation), _rotated(g, k, rotation)
    k, v = (_grown(g, config, kind, layer, new) for kind, new in (("keys", k), ("values", v)))
    q = g.node("Mul", [q, g.constant("scale", np.array(width**-0.5))], f"{name}.scaled")
    scores = g.node("MatMul", [q, g.node("Transpose", [k], f"{name}.columns", perm=[0, 1, 3, 2])], f"{name}.scores")
    shares = g.node("Softmax", [g.node("Add", [scores, mask], f"{name}.masked")], f"{name}.shares", axis=-1)
    y = g.node("Transpose", [g.node("MatMul", [shares, v], f"{name}.mix")], f"{name}.mixed", perm=[0, 2, 1, 3])
    together = g.constant("together", np.array([0, 0, config.n_embd]))
    return _linear(g, tensors, g.node("Reshape", [y, together], f"{name}.together"), f"{name}.proj")


def _grown(g: GraphBuilder, config: ModelConfig, kind: str, layer: int, new: str) -> str:
    """Append the new keys or values to the past ones."""
    width = config.n_embd // config.n_head
    past = g.input(f"past_{kind}.{layer}", g.float_type, ["B", config.n_head, "P", width])
    present = g.output(f"present_{kind}.{layer}", g.float_type, ["B", config.n_head, "P + T", width])
    return g.node("Concat", [past, new], present, axis=2)


def _layer_norm(g: GraphBuilder, tensors: Tensors, x: str, name: str) -> str:
    parameters = [g.constant(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias")]
    return g.node("LayerNormalization", [x, *parameters], name, axis=-1, epsilon=EPSILON)


def _linear(g: GraphBuilder, tensors: Tensors, x: str, name: str) -> str:
    weight = _weight(g, f"{name}.weight", tensors[f"{name}.weight"], g.precision.of(name))
    y = g.node("MatMul", [x, weight], name)
    bias = tensors.get(f"{name}.bias")
    return y if bias is None else g.node("Add", [y, g.constant(f"{name}.bias", bias)], f"{name}.sum")


def _weight(g: GraphBuilder, name: str, weight: np.ndarray[Any, Any], bits: int) -> str:
    """Add an (N, K) weight as the (K, N) matrix that MatMul takes."""
    if bits >= 16:
        return g.constant(name, weight.T)
    matrix = quantize(weight, g.precision.block, 2 ** (bits - 1) - 1)
    values = matrix.columns(weight.shape[1]).astype(np.int8 if bits == 8 else ml_dtypes.int4)
    parts = [g.constant(f"{name}.values", values), g.constant(f"{name}.scales", matrix.scales.T)]
    return g.node("DequantizeLinear", parts, name, axis=0, block_size=g.precision.block)

"""Builds the ONNX graph of a checkpoint, node by node.

There are two layouts: ``fused`` uses onnxruntime's own operators, and its key and value caches are shared buffers of
``cache_size`` positions; ``portable`` uses standard operators alone, and its caches grow (export/portable.py).

Shapes: B batch, T new characters, C channels, H heads, D head width, S cache_size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from charformer.config import ModelConfig
from charformer.model.rotary import rotary_cache
from charformer.runs.tensors import Tensors
from charformer.sampling.onnx_format import padded_width
from export.quantize import quantize

OPSET = 21  # the first with scales for blocks of a matrix
IR_VERSION = 10
MICROSOFT = "com.microsoft"
MAX_SAFE = 64  # of 127: two products with 8-bit activations then fit the 16 bits in which older processors add them
EPSILON = 1e-5  # of PyTorch's layer norms


@dataclass(frozen=True)
class Precision:
    """The bits of the weights of linears and of the head, and the number of inputs that share a scale in 4 bits."""

    bits: int
    head_bits: int
    block: int = 128

    def of(self, name: str) -> int:
        """Return the bits of the weights of the linear ``name``."""
        return self.head_bits if name == "head" else self.bits


PRECISIONS = {
    "fp32": Precision(32, 32),
    "fp16": Precision(16, 16),
    "int8": Precision(8, 8),
    "int4": Precision(4, 8),
}


class GraphBuilder:
    """Collects nodes and initializers; a method that adds one returns its name."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.float_type = TensorProto.FLOAT16 if precision.bits == 16 else TensorProto.FLOAT
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, elem_type: int, shape: list[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, elem_type: int, shape: list[str | int]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Add an initializer; floats take the graph's type."""
        if array.dtype.kind == "f":
            array = array.astype(np.float16 if self.precision.bits == 16 else np.float32)
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, operator: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, of the same name."""
        return self.nodes(operator, inputs, [name], domain, **attributes)[0]

    def nodes(
        self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs, named after the first."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs

    def logits(self, value: str) -> None:
        """Make ``value`` the graph's result, in float32."""
        self.node("Cast", [value], "logits", to=TensorProto.FLOAT)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "charformer", self._inputs, self._outputs, list(self._initializers.values())
        )
        domains = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            domains.append(helper.make_opsetid(MICROSOFT, 1))
        return helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="charformer")


def fused(config: ModelConfig, tensors: Tensors, precision: Precision) -> onnx.ModelProto:
    """Build the graph for onnxruntime, about nine nodes per block.

    Inputs: ids (B, T) int64, positions (T,) int64, lengths (B,) int32, each the last position, total () int32, the
    total length, prior (B, T, V) float32 where the model has an n-gram prior, and past_keys.i, past_values.i
    (B, H, S, D), to be bound to the same memory as present_keys.i and present_values.i. Outputs: logits (B, T, V)
    float32, present_keys.i and present_values.i.
    """
    g = GraphBuilder(precision)
    weights = fold_layer_norms(config, tensors)
    width = config.n_embd // config.n_head
    padded = padded_width(config)
    ids = g.input("ids", TensorProto.INT64, ["B", "T"])
    positions = g.input("positions", TensorProto.INT64, ["T"])
    lengths = g.input("lengths", TensorProto.INT32, ["B"])
    total = g.input("total", TensorProto.INT32, [])
    g.output("logits", TensorProto.FLOAT, ["B", "T", config.vocab_size])
    ones = g.constant("ones", np.ones(config.n_embd))

    prior = prior_input(g, config) if config.ngram_order else ""
    x = embedding(g, weights["tok_emb.weight"], ids, "tok_emb")
    others = [] if config.rope_base else [embedding(g, weights["pos_emb.weight"], positions, "pos_emb")]
    others += [embedded(g, weights, prior)] if prior else []
    for other in others[:-1]:
        x = g.node("Add", [x, other], "embedding")
    if others:
        x, h = _add_norm(g, x, others[-1], ones, "", "blocks.0.ln1")
    else:
        h = embedding(g, _rms_norm(weights["tok_emb.weight"]), ids, "blocks.0.ln1")  # also a table
    rotation, rotates = [], dict[str, int]()
    if config.rope_base:
        missing = (padded - width) // 2
        tables = zip(("cos", "sin"), rotary_cache(config), strict=True)
        rotation = [g.constant(name, np.pad(table, ((0, 0), (0, missing)))) for name, table in tables]
        rotates = {"do_rotary": 1, "local_window_size": config.block_size}
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        cache: list[str | int] = ["B", config.n_head, config.cache_size, padded]
        past = [g.input(f"past_{kind}.{layer}", g.float_type, cache) for kind in ("keys", "values")]
        present = [g.output(f"present_{kind}.{layer}", g.float_type, cache) for kind in ("keys", "values")]
        qkv = weights[f"{block}.attn.qkv.weight"], weights[f"{block}.attn.qkv.bias"]
        proj = weights[f"{block}.attn.proj.weight"]
        if padded != width:
            qkv = _pad_heads(qkv[0], 3 * config.n_head, padded), _pad_heads(qkv[1], 3 * config.n_head, padded)
            proj = _pad_heads(proj.T, config.n_head, padded).T
        h = _linear(g, h, f"{block}.attn.qkv", *qkv)
        h, *_ = g.nodes(
            "GroupQueryAttention",
            [h, "", "", *past, lengths, total, *rotation],
            [f"{block}.attn", *present],
            MICROSOFT,
            num_heads=config.n_head,
            kv_num_heads=config.n_head,
            scale=width**-0.5,
            **rotates,
        )
        h = _linear(g, h, f"{block}.attn.proj", proj)
        bias = g.constant(f"{block}.attn.proj.bias", weights[f"{block}.attn.proj.bias"])
        x, h = _add_norm(g, x, h, ones, bias, f"{block}.ln2")
        h = _linear(g, h, f"{block}.mlp.fc", weights[f"{block}.mlp.fc.weight"], weights[f"{block}.mlp.fc.bias"])
        h = relu(g, h, f"{block}.mlp.relu", config.relu_power)
        h = _linear(g, h, f"{block}.mlp.proj", weights[f"{block}.mlp.proj.weight"])
        following = f"blocks.{layer + 1}.ln1" if layer + 1 < config.n_layer else "ln_f"
        bias = g.constant(f"{block}.mlp.proj.bias", weights[f"{block}.mlp.proj.bias"])
        x, h = _add_norm(g, x, h, ones, bias, following)
    logits = _linear(g, h, "head", weights["head.weight"], weights["head.bias"])
    g.logits(corrected(g, weights, logits, h, prior) if prior else logits)
    return g.model()


def embedding(g: GraphBuilder, rows: np.ndarray[Any, Any], ids: str, name: str) -> str:
    """Add the embedding of tokens, (B, T, C), or of positions, (T, C)."""
    return g.node("Gather", [g.constant(f"{name}.weight", rows), ids], name)


def prior_input(g: GraphBuilder, config: ModelConfig) -> str:
    """Add the input ``prior`` of a model with an n-gram prior: (B, T, V) float32.

    After each new character, it holds the probabilities of the next one by the table in the file's metadata
    (charformer/data/ngram.py).
    """
    return g.input("prior", TensorProto.FLOAT, ["B", "T", config.vocab_size])


def embedded(g: GraphBuilder, weights: Tensors, prior: str) -> str:
    """Add what the prior contributes to the embedding of the characters, (B, T, C), in the graph's type."""
    roots = g.node("Cast", [g.node("Sqrt", [prior], "ngram_prior.roots")], "ngram_prior.inputs", to=g.float_type)
    matrix = g.constant("ngram_prior.input.weight", weights["ngram_prior.input.weight"].T)
    return g.node("MatMul", [roots, matrix], "ngram_prior.input")


def corrected(g: GraphBuilder, weights: Tensors, logits: str, h: str, prior: str) -> str:
    """Add the gated logarithm of ``prior`` to the head's ``logits``, in float32; h, (B, T, C), also feeds the gate."""
    scores = g.node("MatMul", [h, g.constant("ngram_prior.gate.weight", weights["ngram_prior.gate.weight"].T)], "gate")
    scores = g.node("Add", [scores, g.constant("ngram_prior.gate.bias", weights["ngram_prior.gate.bias"])], "gate.sum")
    gate = g.node("Exp", [g.node("Cast", [scores], "gate.float", to=TensorProto.FLOAT)], "gate.exp")
    gated = g.node("Mul", [gate, g.node("Log", [prior], "ngram_prior.log")], "ngram_prior.gated")
    return g.node("Add", [g.node("Cast", [logits], "head.float", to=TensorProto.FLOAT), gated], "corrected")


def relu(g: GraphBuilder, x: str, name: str, power: int) -> str:
    """Add a ReLU, or its square where ``power`` is 2."""
    h = g.node("Relu", [x], name)
    return g.node("Mul", [h, h], f"{name}.squared") if power == 2 else h


def _rms_norm(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the RMS norm of (N, C) over C."""
    return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + EPSILON)


def fold_layer_norms(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Return weights of the same function in which every layer norm is an RMS norm without parameters.

    The weights that write to the residual stream are centred, so that a norm has no mean to subtract, and a norm's
    weight and bias move into the linear after it, which gains a bias where it had none.
    """
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    for name in weights.keys() & {"tok_emb.weight", "pos_emb.weight"}:
        weights[name] -= weights[name].mean(axis=1, keepdims=True)
    folds = [("ln_f", ["head"])]
    if config.ngram_order:
        weights["ngram_prior.input.weight"] -= weights["ngram_prior.input.weight"].mean(axis=0)
        folds = [("ln_f", ["head", "ngram_prior.gate"])]
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        folds += [(f"{block}.ln1", [f"{block}.attn.qkv"]), (f"{block}.ln2", [f"{block}.mlp.fc"])]
        for name in (f"{block}.attn.proj", f"{block}.mlp.proj"):
            weights[f"{name}.weight"] -= weights[f"{name}.weight"].mean(axis=0)
            weights[f"{name}.bias"] -= weights[f"{name}.bias"].mean()
    for norm, linears in folds:
        gain, shift = weights.pop(f"{norm}.weight"), weights.pop(f"{norm}.bias")
        for linear in linears:
            bias = weights.get(f"{linear}.bias", np.zeros(len(weights[f"{linear}.weight"])))
            weights[f"{linear}.bias"] = bias + weights[f"{linear}.weight"] @ shift
            weights[f"{linear}.weight"] *= gain
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _pad_heads(rows: np.ndarray[Any, Any], heads: int, width: int) -> np.ndarray[Any, Any]:
    """Widen each head's rows with zeros, which change neither a score nor a sum.

    Both halves of an even head are widened alike, since rotary positions pair their rows.
    """
    parts = 1 if len(rows) // heads % 2 else 2
    per_part = rows.reshape(heads * parts, -1, *rows.shape[1:])
    missing = [(0, 0), (0, width // parts - per_part.shape[1]), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(per_part, missing).reshape(heads * width, *rows.shape[1:])


def _linear(
    g: GraphBuilder,
    x: str,
    name: str,
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None = None,
) -> str:
    """Apply an (N, K) weight and a bias, (N,), to x, (B, T, K)."""
    bits = g.precision.of(name)
    outputs, inputs = weight.shape
    if bits >= 16:
        y = g.node("MatMul", [x, g.constant(f"{name}.weight", weight.T)], name)
        return y if bias is None else g.node("Add", [y, g.constant(f"{name}.bias", bias)], f"{name}.sum")
    biases = ["", g.constant(f"{name}.bias", bias)] if bias is not None else []
    if bits == 8:
        matrix = quantize(weight, inputs, MAX_SAFE)
        parts = [
            g.constant(f"{name}.weight", matrix.columns(inputs)),
            g.constant(f"{name}.scales", matrix.scales[:, 0]),
        ]
        return g.node("DynamicQuantizeMatMul", [x, *parts, *biases], name, MICROSOFT)
    matrix = quantize(weight, g.precision.block, 7)
    parts = [g.constant(f"{name}.weight", matrix.nibbles()), g.constant(f"{name}.scales", matrix.scales.reshape(-1))]
    return g.node(
        "MatMulNBits",
        [x, *parts, *([""] * bool(biases)), *biases],
        name,
        MICROSOFT,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=g.precision.block,
        accuracy_level=4,  # multiply 8-bit integers
    )


def _add_norm(g: GraphBuilder, x: str, branch: str, ones: str, bias: str, name: str) -> tuple[str, str]:
    """Add a branch and its bias to the residual stream ``x``; return the names of the sum and of its RMS norm."""
    outputs = [name, "", "", f"{name}.stream"]
    g.nodes("SkipSimplifiedLayerNormalization", [x, branch, ones, bias], outputs, MICROSOFT, epsilon=EPSILON)
    return f"{name}.stream", name

"""Compare both graphs with the PyTorch model, at shapes that reveal mistakes in packing."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from charformer.config import ModelConfig
from charformer.data.ngram import NgramTable
from charformer.data.ngram_counts import build as build_table
from charformer.data.ngram_counts import count
from charformer.data.vocab import Vocab
from charformer.model.gpt import GPT
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import OPERATORS, Description, sealed
from export.graph import PRECISIONS, fused
from export.portable import portable

SHAPES = [
    ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=12, vocab_size=11),
    ModelConfig(n_layer=1, n_head=4, n_embd=48, block_size=9, vocab_size=5),  # heads 12 wide, not a multiple of 8
    ModelConfig(n_layer=3, n_head=1, n_embd=5, block_size=1, vocab_size=1),
    ModelConfig(n_layer=1, n_head=3, n_embd=264, block_size=16, vocab_size=130),  # more than two blocks of 128 inputs
    ModelConfig(2, n_head=2, n_embd=32, block_size=12, vocab_size=11, rope_base=10.0, relu_power=2),
    ModelConfig(2, n_head=4, n_embd=24, block_size=9, vocab_size=7, rope_base=10000.0),  # halves widened to 4
    ModelConfig(2, n_head=2, n_embd=32, block_size=12, vocab_size=11, ngram_order=3),
    ModelConfig(2, n_head=2, n_embd=32, block_size=12, vocab_size=130, rope_base=10.0, ngram_order=5),
]


def name_of(config: ModelConfig) -> str:
    return f"{config.n_head}x{config.n_embd}-{config.rope_base:g}-{config.ngram_order}"


TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.1, "int4": 0.2}


def build(config: ModelConfig) -> GPT:
    """Return a model whose norms and biases have an effect."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
            if name == "ngram_prior.gate.weight":  # which starts from zero
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def tensors_of(model: GPT) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def table_of(config: ModelConfig) -> NgramTable | None:
    if not config.ngram_order:
        return None
    text = np.random.default_rng(3).integers(config.vocab_size, size=500)
    return build_table(count(text, config.vocab_size, config.ngram_order), min_gain=0)


def prior_of(config: ModelConfig, ids: np.ndarray) -> torch.Tensor | None:
    """Return the rows after every position of windows without a text before them, (B, T, V)."""
    table = table_of(config)
    if table is None:
        return None
    texts = ids.tolist()
    return torch.tensor(np.array([[table.row(text[: end + 1]) for end in range(ids.shape[1])] for text in texts]))


def engine_on(graph: onnx.ModelProto, config: ModelConfig, precision: str, layout: str, path: Path) -> OnnxEngine:
    vocab = Vocab("".join(map(chr, range(0x100, 0x100 + config.vocab_size))))
    description = Description(config, vocab, precision, layout == "portable", "", None, table_of(config))
    onnx.helper.set_model_props(graph, description.to_metadata())
    path.write_bytes(sealed(graph.SerializeToString()))
    return OnnxEngine(path)


@pytest.mark.parametrize("config", SHAPES, ids=name_of)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["fused", "portable"])
def test_logits_are_the_model_s(config: ModelConfig, precision: str, layout: str, tmp_path: Path) -> None:
    model = build(config)
    make = fused if layout == "fused" else portable
    graph = make(config, tensors_of(model), PRECISIONS[precision])
    onnx.checker.check_model(graph)
    engine = engine_on(graph, config, precision, layout, tmp_path / "model.onnx")
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(3, config.block_size))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(ids), None, prior_of(config, ids)).numpy()
    near = {"atol": TOLERANCE[precision], "rtol": TOLERANCE[precision] / 5 if config.ngram_order else 0}
    np.testing.assert_allclose(engine.read(ids), wanted, **near)
    if config.block_size > 1:  # the same in two pieces, the second one character by character
        half = config.block_size // 2
        np.testing.assert_allclose(engine.start(ids[:, :half]), wanted[:, half - 1], **near)
        for place in range(half, config.block_size):
            found = engine.extend(ids[:, [place]])[:, 0]
            np.testing.assert_allclose(found, wanted[:, place], **near)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("config", [SHAPES[0], SHAPES[4]], ids=["learned", "rotary"])
def test_the_portable_graph_is_standard_onnx(config: ModelConfig, precision: str) -> None:
    model = build(config)
    graph = portable(config, tensors_of(model), PRECISIONS[precision])
    assert {node.domain for node in graph.graph.node} == {""}
    assert {node.op_type for node in graph.graph.node} <= OPERATORS[""]
    assert [entry.domain for entry in graph.opset_import] == [""]
    evaluator = ReferenceEvaluator(graph)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, 10))
    past = {entry.name: np.zeros((2, 2, 0, 16), np.float32) for entry in graph.graph.input[2:]}
    names = [entry.name for entry in graph.graph.output]
    logits = []
    for start, stop in ((0, 6), (6, 7), (7, 10)):
        inputs = {"ids": ids[:, start:stop], "positions": np.arange(start, stop), **past}
        found, *present = evaluator.run(names, inputs)
        logits.append(found)
        past = dict(zip(past, present, strict=True))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(np.concatenate(logits, axis=1), wanted, rtol=0, atol=TOLERANCE[precision])


def test_a_block_is_nine_nodes_or_fewer() -> None:
    """The runtime spends its time between nodes; 54 to 61 are what six blocks should take."""
    config = ModelConfig(n_layer=6, vocab_size=87)
    graph = fused(config, tensors_of(GPT(config)), PRECISIONS["int8"])
    assert len(graph.graph.node) <= 54
    assert all(node.op_type in OPERATORS[node.domain] for node in graph.graph.node)


def test_8_bit_sums_fit_the_processors_without_vnni() -> None:
    """Such processors add two products of an unsigned and a signed byte in 16 bits."""
    config = SHAPES[0]
    graph = fused(config, tensors_of(build(config)), PRECISIONS["int8"]).graph
    weights = [numpy_helper.to_array(entry) for entry in graph.initializer if entry.data_type == onnx.TensorProto.INT8]
    assert len(weights) == 4 * config.n_layer + 1
    assert 2 * 255 * max(int(np.abs(array.astype(int)).max()) for array in weights) < 2**15


CUDA_FP16 = {  # the CUDA provider's kernels in onnxruntime's list of operators (docs/OperatorKernels.md, 1.23-1.31)
    "Gather",
    "SkipSimplifiedLayerNormalization",
    "MatMul",
    "Add",
    "GroupQueryAttention",
    "Relu",
    "Cast",
}


def test_the_16_bit_graph_has_only_what_the_cuda_provider_runs_in_16_bits() -> None:
    config = SHAPES[0]
    graph = fused(config, tensors_of(build(config)), PRECISIONS["fp16"]).graph
    assert {node.op_type for node in graph.node} <= CUDA_FP16
    floats = {entry.data_type for entry in graph.initializer if entry.data_type != onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}

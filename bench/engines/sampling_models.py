"""Write one checkpoint in the format of each sampler."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import torch
from onnx import TensorProto, helper, numpy_helper

from charformer.config import ModelConfig
from charformer.data.ngram_counts import build, count
from charformer.data.vocab import Vocab
from charformer.model.gpt import GPT
from charformer.runs.checkpoint import save_weights
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_format import padded_width
from export.graph import PRECISIONS, fused


def random_run(folder: Path, config: ModelConfig) -> RunDir:
    """Write and return a run of the shape ``config`` with the random weights that a training would start from."""
    run = RunDir(folder)
    run.start()
    run.write_vocab(Vocab("".join(map(chr, range(0x20, 0x20 + config.vocab_size)))))
    torch.manual_seed(0)
    save_weights(run, GPT(config).state_dict(), step=0, val_loss=float("nan"))
    run.write_config({"model": config.to_dict(), "corpus": {}})
    if config.ngram_order:
        text = (
            np.random.default_rng(0).integers(config.vocab_size, size=4000) // 2
        )  # half of the characters never occur
        run.write_ngram(build(count(text, config.vocab_size, config.ngram_order)))
    return run


def write_for_peers(run: RunDir, folder: Path) -> None:
    """Write weights for CTranslate2, and a folder for each precision of onnxruntime-genai.

    Both need a symbol that ends a text, so they get one more symbol, which is never picked.
    """
    config, _ = run.read_shape()
    tensors, _ = run.read_weights(config)
    tensors["tok_emb.weight"] = np.pad(tensors["tok_emb.weight"], ((0, 1), (0, 0)))
    tensors["head.weight"] = np.pad(tensors["head.weight"], ((0, 1), (0, 0)))
    tensors["head.bias"] = np.append(tensors["head.bias"], np.float32(-1e4))
    config = replace(config, vocab_size=config.vocab_size + 1)
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
    (folder / "shape.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    for precision in ("fp32", "int8", "int4"):
        target = folder / f"genai-{precision}"
        target.mkdir()
        onnx.save(_for_genai(fused(config, tensors, PRECISIONS[precision])), target / "model.onnx")
        (target / "genai_config.json").write_text(json.dumps(_genai_config(config), indent=2), encoding="utf-8")


def _for_genai(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the fused graph with the inputs that onnxruntime-genai feeds.

    genai's own model builder makes graphs of the same operators. This graph also has our folded layer norms and 8-bit
    matmuls, so that the comparison is of two runtimes around one graph.
    """
    graph = model.graph
    constants = {"row 0": np.array(0), "axis 1": np.array([1]), "one": np.array(1)}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    made = [
        helper.make_node("Identity", ["input_ids"], ["ids"]),
        helper.make_node("Gather", ["position_ids", "row 0"], ["positions"], axis=0),
        helper.make_node("ReduceSum", ["attention_mask", "axis 1"], ["length"], keepdims=0),
        helper.make_node("Sub", ["length", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["lengths"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["columns"]),
        helper.make_node("Cast", ["columns"], ["total"], to=TensorProto.INT32),
    ]
    nodes = [*made, *graph.node]
    pasts = [entry for entry in graph.input if entry.name.startswith("past_")]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    for name, length in (("input_ids", "T"), ("position_ids", "T"), ("attention_mask", "total length")):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["B", length]))
    graph.input.extend(pasts)
    return model


def _genai_config(config: ModelConfig) -> dict[str, Any]:
    inputs = {name: name for name in ("input_ids", "position_ids", "attention_mask")}
    outputs = {"logits": "logits"}
    for short, kind in (("key", "keys"), ("value", "values")):
        inputs[f"past_{short}_names"] = f"past_{kind}.%d"
        outputs[f"present_{short}_names"] = f"present_{kind}.%d"
    decoder = {
        "filename": "model.onnx",
        "head_size": padded_width(config),
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "inputs": inputs,
        "outputs": outputs,
        "session_options": {},
    }
    symbols = {"vocab_size": config.vocab_size, "bos_token_id": 0, "eos_token_id": config.vocab_size - 1}
    return {
        "model": {"type": "llama", "context_length": config.cache_size, "pad_token_id": 0, "decoder": decoder}
        | symbols,
        "search": {"max_length": config.cache_size, "past_present_share_buffer": True},
    }

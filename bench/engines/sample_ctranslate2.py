"""CTranslate2 as an engine of bench.sampling, in the peers' environment."""

import json
from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.specs import Activation, TransformerDecoderModelSpec
from safetensors.numpy import load_file

from bench.engines.texts import Handler, answer


def convert(folder: Path) -> Path:
    """Convert the model to CTranslate2's format unless that is done; return its folder."""
    target = folder / "ctranslate2"
    if target.exists():
        return target
    shape = json.loads((folder / "shape.json").read_text("utf-8"))
    weights = load_file(folder / "weights.safetensors")
    spec = TransformerDecoderModelSpec.from_config(
        shape["n_layer"], shape["n_head"], pre_norm=True, activation=Activation.RELU
    )

    def fill(part: object, name: str, weight: str, bias: str) -> None:
        setattr(part, weight, weights[f"{name}.weight"])
        if f"{name}.bias" in weights:
            setattr(part, bias, weights[f"{name}.bias"])

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["tok_emb.weight"]
    decoder.position_encodings.encodings = weights["pos_emb.weight"]
    fill(decoder.projection, "head", "weight", "bias")
    fill(decoder.layer_norm, "ln_f", "gamma", "beta")
    for index, layer in enumerate(decoder.layer):
        block = f"blocks.{index}"
        fill(layer.self_attention.layer_norm, f"{block}.ln1", "gamma", "beta")
        fill(layer.self_attention.linear[0], f"{block}.attn.qkv", "weight", "bias")
        layer.self_attention.linear[0].bias = np.zeros(3 * shape["n_embd"], np.float32)
        fill(layer.self_attention.linear[1], f"{block}.attn.proj", "weight", "bias")
        fill(layer.ffn.layer_norm, f"{block}.ln2", "gamma", "beta")
        fill(layer.ffn.linear_0, f"{block}.mlp.fc", "weight", "bias")
        fill(layer.ffn.linear_1, f"{block}.mlp.proj", "weight", "bias")
    tokens = [str(number) for number in range(shape["vocab_size"])]
    spec.register_vocabulary(tokens)
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = tokens[-1]
    spec.validate()
    target.mkdir()
    spec.save(str(target))
    return target


def handler(folder: str, weights: str, characters: int, threads: int, batch: int) -> Handler:
    """Return a handler that samples with CTranslate2.

    Args:
        folder: a folder with weights.safetensors, the tensors of a checkpoint, and shape.json, its ModelConfig. The
            last symbol of the vocabulary ends a text.
    """
    compute_type = {"fp32": "float32", "int8": "int8"}[weights]
    path = str(convert(Path(folder)))
    generator = ctranslate2.Generator(path, "cpu", compute_type=compute_type, intra_threads=threads)

    def generate(greedy: bool) -> list[int]:
        found = generator.generate_batch(
            [["0"]] * batch,
            max_length=characters,
            min_length=characters,
            sampling_topk=1 if greedy else 0,
            include_prompt_in_result=False,
        )
        return [int(token) for token in found[0].sequences[0]]

    return answer(generate)

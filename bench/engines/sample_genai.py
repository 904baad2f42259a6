"""onnxruntime-genai as an engine of bench.sampling, in the peers' environment."""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from bench.engines.texts import Handler, answer


def handler(folder: str, characters: int, threads: int, batch: int) -> Handler:
    """Return a handler that samples from a folder of sampling_models.py, with model.onnx and genai_config.json."""
    symbols = json.loads((Path(folder) / "genai_config.json").read_text("utf-8"))["model"]["vocab_size"]
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def generate(greedy: bool) -> list[int]:
        parameters = genai.GeneratorParams(model)
        how = (
            {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": symbols, "top_p": 1.0}
        )
        parameters.set_search_options(max_length=characters + 1, batch_size=batch, **how)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.zeros((batch, 1), np.int32))
        ids = []
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return ids

    return answer(generate)

"""onnxruntime-genai as a sampler to measure; run in the peers' environment by bench.sampling.

    python -m bench.engines.sample_genai FOLDER THREADS BATCH CHARACTERS

FOLDER holds model.onnx and genai_config.json, from bench/engines/sampling_models.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from bench.harness.worker import serve


def main() -> None:
    """Load, then generate for each line of stdin."""
    folder, threads, batch, characters = sys.argv[1:]
    symbols = json.loads((Path(folder) / "genai_config.json").read_text("utf-8"))["model"]["vocab_size"]
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}}))
    model = genai.Model(config)

    def generate(greedy: bool) -> list[int]:
        parameters = genai.GeneratorParams(model)
        how = (
            {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": symbols, "top_p": 1.0}
        )
        parameters.set_search_options(max_length=int(characters) + 1, batch_size=int(batch), **how)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.zeros((int(batch), 1), np.int32))
        ids = []
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return ids

    serve(generate)


if __name__ == "__main__":
    main()

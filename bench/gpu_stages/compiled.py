"""Time the nanoGPT-like model and ours under torch.compile, at `baseline`'s shape."""

import time

from bench.gpu_stages.steps import SUBJECTS, about, build, eager_step, measure
from bench.gpu_stages.visit import Stage, Visit
from charformer.data import corpus as corpora
from kernels import backend


def run(visit: Visit) -> Stage:
    """Yield a row for each model; the first step, which compiles, is timed separately."""
    corpus = corpora.load(visit.data)
    shown = []
    for name in ("nanogpt-like", "charformer", "charformer, PyTorch's ops"):
        engine_name, ops = SUBJECTS[name]
        variant = visit.variant("baseline", engine_name, len(corpus.alphabet))
        row = {"part": "compiled", "kernels": ops, "compiled": True, **about(variant, name)}
        try:
            with backend.force(ops):
                engine = build(variant, corpus, visit.device)
                # A rehearsal on a CPU stops before code is generated, since a C++ compiler may be missing.
                engine.model.compile(dynamic=False, backend="inductor" if visit.on_gpu else "aot_eager")
                step = eager_step(engine)
                began = time.perf_counter()
                float(step())
                first = time.perf_counter() - began
                found = measure(step, variant, visit)
        except Exception as error:  # a compiler may raise anything
            yield row | {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}
            continue
        yield row | found | {"first_step_seconds": first}
        shown.append(f"{name} {1e3 * found['step_seconds']['p50']:.2f} ms")
    return "; ".join(shown)

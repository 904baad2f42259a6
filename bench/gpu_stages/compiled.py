"""Time the nanoGPT-like model and ours under torch.compile, at `baseline`'s shape."""

from bench.gpu_stages.steps import SUBJECTS, in_short, timed
from bench.gpu_stages.visit import Stage, Visit
from charformer.data import corpus as corpora


def run(visit: Visit) -> Stage:
    """Yield a row for each model; the first step, which compiles, is timed separately."""
    corpus = corpora.load(visit.data)
    shown = []
    for name in SUBJECTS:
        row = timed(visit, corpus, "baseline", name, "compiled")
        yield row
        shown.append(in_short(row))
    return "; ".join(shown)

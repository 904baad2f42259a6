"""Compile the kernels that Triton's cache lacks for this card, in parallel."""

import os
from pathlib import Path

import torch

from bench.gpu_stages.visit import PRESETS_TIMED, VOCABULARY, Stage, Visit
from charformer.presets import PRESETS
from kernels.checks.cases import Case, cases, step_cases


def run(visit: Visit) -> Stage:
    """Yield the cache's hits and misses and the cases that failed. Raise RuntimeError if a kernel does not compile."""
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
    from kernels.checks.compile import fill_cache

    if visit.on_gpu:
        import triton

        major, minor = torch.cuda.get_device_capability()
        card, folder, wanted = f"sm_{major}{minor}", Path(triton.knobs.cache.dir), [*cases(), *preset_cases()]
    else:
        card, folder, wanted = "sm_90", visit.out / "triton-cache", [Case("layer_norm", torch.bfloat16, 7, 384)]
    found = fill_cache(card, folder, os.cpu_count() or 1, wanted)
    yield {"part": "compiling", "card": card, **found}
    if found["failed"]:
        raise RuntimeError(f"{len(found['failed'])} cases do not compile: {found['failed'][0]}")
    return f"{found['hits']} kernels were in the cache, {found['misses']} were compiled"


def preset_cases() -> list[Case]:
    """Return the op calls in a step of each timed preset, with and without dropout."""
    found = []
    for preset in PRESETS_TIMED:
        model, batch = PRESETS[preset].model, PRESETS[preset].pretrain.batch_size
        heads, width = model.n_head, model.n_embd // model.n_head
        for p in (0.0, 0.2):
            found += step_cases(torch.bfloat16, batch, model.block_size, heads, width, VOCABULARY, p, p)
    return list(dict.fromkeys(found))

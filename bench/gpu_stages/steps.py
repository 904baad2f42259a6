"""Time training steps in bf16, eager and captured: ours with our kernels and with PyTorch's ops, and nanoGPT-like."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from bench.engines.nanogpt_like import NanogptLikeEngine
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Variant
from bench.gpu_stages.visit import PRESETS_TIMED, Row, Stage, Visit
from bench.harness import flops
from bench.harness.results import percentiles
from bench.harness.timing import between, marker
from charformer.data import corpus as corpora
from charformer.data.corpus import Corpus
from charformer.device import synchronize
from charformer.training.cuda_graph import EAGER_STEPS, CapturedStep, side_stream
from kernels import backend

Engine = CharformerEngine | NanogptLikeEngine

SUBJECTS = {  # the engine, and the backend of its ops
    "charformer": ("charformer", "auto"),
    "charformer, PyTorch's ops": ("charformer", "pytorch"),
    "nanogpt-like": ("nanogpt-like", "auto"),
}
STEPS = {"cuda": 40, "cpu": 2}
PROFILED_STEPS = 3
LONGEST = 12


def run(visit: Visit) -> Stage:
    """Yield a row for each preset and engine, eager and, on a GPU, captured."""
    return rows(visit, PRESETS_TIMED, ("eager", "captured") if visit.on_gpu else ("eager",))


def rows(visit: Visit, presets: Sequence[str], ways: Sequence[str]) -> Stage:
    """Yield a row for each preset, engine and way, and return them in short."""
    corpus = corpora.load(visit.data)
    shown = []
    for preset, name, way in product(presets, SUBJECTS, ways):
        row = timed(visit, corpus, preset, name, way)
        yield row
        found = f"{1e3 * row['step_seconds']['p50']:.2f} ms" if "step_seconds" in row else row["error"]
        shown.append(f"{preset} {name} {way} {found}")
    return "; ".join(shown)


def timed(visit: Visit, corpus: Corpus, preset: str, name: str, way: str) -> Row:
    """Return the row of an engine's step, which is "eager", "captured" or "compiled"."""
    engine_name, ops = SUBJECTS[name]
    variant = visit.variant(preset, engine_name, len(corpus.alphabet))
    row = variant.about | {"part": "steps", "engine": name, "kernels": ops, "way": way}
    row["compiled"] = way == "compiled"
    torch.manual_seed(0)
    try:
        with backend.force(ops):
            made = CharformerEngine if engine_name == "charformer" else NanogptLikeEngine
            engine = made(variant, corpus, visit.device)
            if way == "compiled":
                # A rehearsal on a CPU stops before code is generated, since a C++ compiler may be missing.
                engine.model.compile(dynamic=False, backend="inductor" if visit.on_gpu else "aot_eager")
            return row | measure(engine, way, variant, visit)
    except RuntimeError as error:
        return row | {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}


def captured_step(engine: Engine) -> Callable[[], Tensor]:
    """Return a function that replays a step, which is captured after some eager ones, and returns its loss."""
    with side_stream():
        for _ in range(EAGER_STEPS):
            engine.step(*engine.batch())
    captured = CapturedStep(engine.step, engine.batch())

    def step() -> Tensor:
        engine.batch(captured.inputs)
        return captured.replay()

    return step


def measure(engine: Engine, way: str, variant: Variant, visit: Visit) -> Row:
    """Return the seconds by events and by the clock, the host's part of them, the GPU's work, memory and MFU.

    The seconds until the first step is done include what is compiled or captured for it.
    """
    device, count = visit.device, STEPS[visit.device.type]
    if visit.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step = captured_step(engine) if way == "captured" else lambda: engine.step(*engine.batch())
    with side_stream() if visit.on_gpu else torch.enable_grad():
        step()
        synchronize(device)
        first = time.perf_counter() - began
        for _ in range(EAGER_STEPS):
            step()
        synchronize(device)
        laps, enqueued = [marker(device)], []
        began = time.perf_counter()
        for _ in range(count):
            start = time.perf_counter()
            loss = step()
            enqueued.append(time.perf_counter() - start)
            laps.append(marker(device))
        synchronize(device)
        wall = (time.perf_counter() - began) / count
        profiled = profile(step) if visit.on_gpu else {}
    seconds = [between(*pair) for pair in pairwise(laps)]
    found = percentiles(seconds)
    ceiling = visit.found("facts", "ceilings").get("matmul_flops_per_second", {}).get("p50")
    work = flops.per_character(variant.model) * variant.characters
    return {
        "first_step_seconds": first,
        "step_seconds": found,
        "wall_seconds": wall,
        "host_seconds": percentiles(enqueued),
        "chars_per_second": percentiles([variant.characters / each for each in seconds]),
        "samples": count,
        "mfu": work / found["p50"] / ceiling if ceiling else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if visit.on_gpu else None,
        "loss": float(loss),
        **profiled,
        "busy_share": profiled["gpu_seconds"] / found["p50"] if "gpu_seconds" in profiled else None,
    }


def profile(step: Callable[[], object]) -> Row:
    """Return what the GPU does in a step, by PyTorch's profiler: the number of kernels, copies and fills, the sum of
    their seconds, and those that take longest in all."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(PROFILED_STEPS):
                step()
            torch.cuda.synchronize()
        # An optimizer marks its step by a range, which the profiler lists beside the kernels in it.
        events = [event for event in profiler.events() or [] if not event.is_user_annotation]
        work = [event for event in events if str(event.device_type).endswith("CUDA")]
    except RuntimeError as error:  # for example CUPTI's while another program profiles
        return {"profiler": str(error).partition("\n")[0]}
    micro: Counter[str] = Counter()
    for event in work:
        micro[event.name[:80]] += event.time_range.elapsed_us()
    top = {name: us / PROFILED_STEPS for name, us in micro.most_common(LONGEST)}
    return {
        "gpu_operations": round(len(work) / PROFILED_STEPS),
        "gpu_seconds": sum(micro.values()) / PROFILED_STEPS / 1e6,
        "longest_us": top,
    }

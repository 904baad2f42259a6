"""Show where the time of a training step goes: matmuls with weights, attention, add + norm, and the rest.

    python -m bench.step --preset baseline nano --json bench/results/step.json
    python -m bench.report bench/results/step-before.json bench/results/step.json --chart docs/step.png

The forward pass is timed by module and op, the backward pass by the nodes of autograd's graph, each of which finishes
on a CPU before the next begins.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from bench.engines.matmuls import MatMuls
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Variant
from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, load_text, print_table
from bench.harness.stopwatch import Stopwatch
from charformer.data.corpus import Corpus
from charformer.device import choose_dtype
from charformer.model.gpt import MLP
from charformer.presets import PRESETS
from charformer.ui.console import PlainConsole, progress_bar
from kernels import ops

STEP_PARTS = ("matmuls", "attention", "add_norm", "activation", "optimizer", "rest")
CPU = torch.device("cpu")
WARM_STEPS = 3
# The part that a node of autograd's graph belongs to, by how its name begins.
BACKWARD = {
    "Addmm": "matmuls",
    "Mm": "matmuls",
    "_Linear": "matmuls",
    "_Attention": "attention",
    "_AddNorm": "add_norm",
    "NativeLayerNorm": "add_norm",
    "Relu": "activation",
    "_SquaredReLU": "activation",
}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("step", __doc__)
    parser.add_presets("baseline", "nano")
    parser.add_count("--steps", 8, "steps to time")
    parser.add_data()
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    corpus = load_text(args.data)
    precision = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        rows = [_measure(preset, precision, corpus, args.steps, on_progress) for preset in args.preset]
    keep(args, {"steps": args.steps, "corpus": corpus.name}, rows)
    columns = {"step": "{preset}"} | {part: f"{{seconds[{part}]:.4f}}" for part in STEP_PARTS}
    columns |= {"total": "{step_seconds:.4f}", "matmuls alone": "{matmul_seconds:.4f}"}
    print_table("seconds, medians", rows, columns | {"attention's alone": "{attention_matmul_seconds:.4f}"})
    return 0


def _measure(
    preset: str, precision: str, corpus: Corpus, steps: int, on_progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    chosen = PRESETS[preset]
    shape = replace(chosen.model, vocab_size=len(corpus.alphabet))
    variant = Variant("charformer", preset, shape, chosen.pretrain.batch_size, precision)
    engine, matmuls = CharformerEngine(variant, corpus, CPU), MatMuls(variant, CPU)
    timed: list[dict[str, float]] = []
    alone: list[tuple[float, float]] = []
    for step in range(WARM_STEPS + steps):
        on_progress(preset, step, WARM_STEPS + steps)
        watch = Stopwatch()
        with _forward_timed(engine.model, watch), watch.part("rest"):
            loss = engine.loss(engine.batch())
        _time_backward(loss, watch)
        with watch.part("rest"):
            loss.backward()  # type: ignore[no-untyped-call]
        with watch.part("optimizer"):
            engine.update()
        timed.append(watch.seconds)
        began = time.perf_counter()
        matmuls.step(lambda: None)
        between = time.perf_counter()
        matmuls.attention()
        alone.append((between - began, time.perf_counter() - between))
    timed, alone = timed[WARM_STEPS:], alone[WARM_STEPS:]
    whole = [sum(seconds.values()) for seconds in timed]
    return results.row(
        **variant.about,
        threads=torch.get_num_threads(),
        chars_per_second=results.percentiles([variant.characters / seconds for seconds in whole]),
        samples=len(whole),
        step_seconds=median(whole),
        matmul_seconds=median(weights for weights, _ in alone),
        attention_matmul_seconds=median(attention for _, attention in alone),
        seconds={part: median(seconds[part] for seconds in timed) for part in STEP_PARTS},
    )


@contextmanager
def _forward_timed(model: torch.nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Count linear layers, activations and ops as parts within the context."""
    handles = []
    for linear in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        handles.append(linear.register_forward_pre_hook(lambda *_: watch.begin("matmuls")))
        handles.append(linear.register_forward_hook(lambda *_: watch.end()))
    for mlp in (module for module in model.modules() if isinstance(module, MLP)):  # the activation is what lies between
        handles.append(mlp.fc.register_forward_hook(lambda *_: watch.begin("activation")))
        handles.append(mlp.proj.register_forward_pre_hook(lambda *_: watch.end(), prepend=True))
    parts = {"attention": "attention", "add_dropout_layer_norm": "add_norm", "layer_norm": "add_norm"}
    with patch.multiple(ops, **{name: watch.part(part)(getattr(ops, name)) for name, part in parts.items()}):
        yield
    for handle in handles:
        handle.remove()


def _time_backward(loss: torch.Tensor, watch: Stopwatch) -> None:
    """Count every node of the graph of ``loss`` that ``BACKWARD`` names when it runs."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        part = next((part for prefix, part in BACKWARD.items() if node.name().startswith(prefix)), None)
        if part is not None:
            node.register_prehook(lambda _, part=part: watch.begin(part))
            node.register_hook(lambda *_: watch.end())


if __name__ == "__main__":
    raise SystemExit(main())

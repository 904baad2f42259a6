"""Show where the time of a training step goes: matmuls with weights, attention, add + norm, and the rest.

    python -m bench.step --preset baseline nano --json bench/results/step.json --chart docs/step.png

A step is timed part by part: the forward pass by module and op, the backward pass by the nodes of autograd's graph,
each of which finishes on a CPU before the next begins. Beside it stands the time of the matrix products alone, both
those with weights and attention's own. With --before, the result of another commit on this machine is drawn as well.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.engines.matmuls import MatMuls
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Variant
from bench.harness import results
from bench.harness.charts import Stack, write_stacks
from bench.harness.program import BenchParser, execute, keep, load_text, show, table
from charformer.data.corpus import Corpus
from charformer.device import choose_dtype
from charformer.errors import UserError
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
    "_Dropout": "add_norm",
    "NativeLayerNorm": "add_norm",
    "Relu": "activation",
    "_SquaredReLU": "activation",
}


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("step", __doc__)
    parser.add_presets("baseline", "nano")
    parser.add_count("--steps", 8, "steps to time")
    parser.add_data()
    parser.add_argument("--before", type=Path, metavar="FILE", help="an earlier result to draw above the new one")
    parser.add_chart("a chart of the parts")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    earlier = _earlier(args.before) if args.before else []
    corpus = load_text(args.data, PlainConsole(stderr=True))
    precision = str(choose_dtype("auto", CPU)).removeprefix("torch.")
    rows = []
    with progress_bar(PlainConsole(stderr=True)) as on_progress:
        for preset in args.preset:
            rows.append(_measure(preset, precision, corpus, args.steps, on_progress))
    keep(args, {"steps": args.steps, "corpus": corpus.name}, rows)
    columns = ("total", "matmuls alone", "attention's alone")
    figures = table("milliseconds, medians", ["step"], [*STEP_PARTS, *columns])
    for when, row in [*(("before: ", row) for row in earlier), *(("", row) for row in rows)]:
        seconds = [*row["seconds"].values(), row["step_seconds"], row["matmul_seconds"]]
        seconds.append(row.get("attention_matmul_seconds"))  # older results lack it
        figures.add_row(f"{when}{row['preset']}", *("" if each is None else f"{1e3 * each:.1f}" for each in seconds))
    show(figures)
    if args.chart:
        stacks: list[tuple[str, list[Stack]]] = []
        for row in rows:
            found = [("before", old["seconds"]) for old in earlier if old["preset"] == row["preset"]]
            alone = {"matmuls": row["matmul_seconds"], "attention": row["attention_matmul_seconds"]}
            found += [("now" if found else "step", row["seconds"]), ("its matmuls", alone)]
            stacks.append((f"{row['preset']}, {row['precision']}, {row['batch']} x {row['context']}", found))
        write_stacks(args.chart, stacks, STEP_PARTS, "seconds of a step")
    return 0


def _earlier(path: Path) -> list[dict[str, Any]]:
    content = results.read_result(path)
    if content.get("bench") != "step":
        raise UserError(f"{path} is not a result of bench.step")
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def _measure(
    preset: str, precision: str, corpus: Corpus, steps: int, on_progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    chosen = PRESETS[preset]
    shape = replace(chosen.model, vocab_size=len(corpus.alphabet))
    variant = Variant("charformer", preset, shape, chosen.pretrain.batch_size, precision)
    engine, matmuls = CharformerEngine(variant, corpus, CPU), MatMuls(variant, CPU)
    whole: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in STEP_PARTS}
    alone: list[float] = []
    attention_alone: list[float] = []
    for step in range(WARM_STEPS + steps):
        spent: dict[str, float] = defaultdict(float)
        began = time.perf_counter()
        with _forward_timed(engine.model, spent):
            loss = engine.loss(engine.batch())
        _time_backward(loss, spent)
        loss.backward()  # type: ignore[no-untyped-call]
        with _timed("optimizer", spent):
            engine.update()
        seconds = time.perf_counter() - began
        spent["rest"] = seconds - sum(spent.values())
        began = time.perf_counter()
        matmuls.step(lambda: None)
        multiplied = time.perf_counter()
        matmuls.attention()
        if step >= WARM_STEPS:
            alone.append(multiplied - began)
            attention_alone.append(time.perf_counter() - multiplied)
            whole.append(seconds)
            for part, found in parts.items():
                found.append(spent[part])
        on_progress(preset, step + 1, WARM_STEPS + steps)
    return results.row(
        engine="charformer",
        preset=preset,
        precision=precision,
        batch=variant.batch_size,
        context=shape.block_size,
        threads=torch.get_num_threads(),
        freeze="none",
        chars_per_second=results.percentiles([variant.characters / seconds for seconds in whole]),
        samples=len(whole),
        step_seconds=median(whole),
        matmul_seconds=median(alone),
        attention_matmul_seconds=median(attention_alone),
        seconds={part: median(found) for part, found in parts.items()},
    )


@contextmanager
def _timed(part: str, spent: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - began


@contextmanager
def _forward_timed(model: torch.nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Add the seconds of linear layers and ops to ``spent`` within the context."""
    began = [0.0]

    def start(*_: object) -> None:
        began[0] = time.perf_counter()

    def stop(*_: object) -> None:
        spent["matmuls"] += time.perf_counter() - began[0]

    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    handles = [
        hook
        for linear in linears
        for hook in (linear.register_forward_pre_hook(start), linear.register_forward_hook(stop))
    ]
    originals: dict[str, Callable[..., Any]] = {
        "attention": ops.attention,
        "add_dropout_layer_norm": ops.add_dropout_layer_norm,
    }
    parts = {"attention": "attention", "add_dropout_layer_norm": "add_norm"}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with _timed(parts[name], spent):
                return originals[name](*args, **options)

        return call

    for name in originals:
        setattr(ops, name, wrapped(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(ops, name, original)
        for handle in handles:
            handle.remove()


def _time_backward(loss: torch.Tensor, spent: dict[str, float]) -> None:
    """Let every node of the graph of ``loss`` add its seconds to ``spent`` when it runs."""
    began = [0.0]
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        part = next((part for prefix, part in BACKWARD.items() if node.name().startswith(prefix)), None)
        if part is None:
            continue

        def start(_: object) -> None:
            began[0] = time.perf_counter()

        def stop(_: object, __: object, part: str = part) -> None:
            spent[part] += time.perf_counter() - began[0]

        node.register_prehook(start)
        node.register_hook(stop)


if __name__ == "__main__":
    raise SystemExit(main())

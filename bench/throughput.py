"""Measure how fast this machine trains, against the baseline, other libraries, and matrix products alone.

    python -m bench.throughput                            the baseline's two shapes
    python -m bench.throughput --preset nano              another preset's shape
    python -m bench.throughput --nanogpt ../nanoGPT       with nanoGPT from your own checkout, some minutes more
    python -m bench.throughput --scaling                  with growth by context, batch and width, longer still

Each variant runs in a process of its own, and the variants take turns, so that ratios hold when the machine's speed
drifts. All train on the same text with the same batch, context and dropout; the table says in what else their work
differs from the baseline's. transformers takes part if it is installed: pip install -c constraints.txt -e ".[peers]".
"""

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench.engines import baseline
from bench.engines.train_nanogpt import require
from bench.engines.variant import Variant
from bench.harness import projection, results, scaling, throughput_tables
from bench.harness.interleave import interleave
from bench.harness.program import BenchParser, execute, keep, load_text
from bench.harness.training import TrainingEntry
from charformer.device import choose_device, choose_dtype
from charformer.presets import PRESETS, Preset
from charformer.ui.console import PlainConsole

CORRECTED = (
    "scores scaled by the head's width, not the model's",
    "final layer norm applied",
    "glibc keeps freed memory",
)
GPT2 = ("GELU, tied head, dropout on embeddings too, AdamW",)
NANOGPT = (*GPT2, "no biases", "gradient clipping")
LESS = {"attention": "no gradients of attention's weights", "trunk": "no pass back through the blocks, no dropout"}
BF16 = "bf16 matrix products"
TURN_SECONDS = {"cpu": 5.0, "cuda": 1.0}
CURVES = Path(__file__).parent / "results" / "convergence.json"


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("throughput", __doc__)
    parser.add_presets(*projection.SHAPES)
    parser.add_data()
    parser.add_device()
    parser.add_count("--rounds", 2, "turns of each variant")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="X",
        help="seconds of a turn, which takes two steps at least (default: 5, on a GPU 1)",
    )
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="also train nanoGPT from this checkout")
    parser.add_argument(
        "--scaling", action="store_true", help="also fit how the cost grows with context, batch and width"
    )
    parser.add_argument(
        "--curves",
        type=Path,
        default=CURVES,
        metavar="FILE",
        help="result of bench.convergence to project times to a loss from (default: the committed one)",
    )
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if args.nanogpt:
        require(args.nanogpt)
    curves = results.read_result(args.curves)["rows"] if args.curves.is_file() or args.curves != CURVES else []
    device = choose_device(args.device)
    seconds = args.seconds or TURN_SECONDS[device.type]
    notices = PlainConsole(stderr=True)
    corpus = load_text(args.data, notices)
    for preset in args.preset:
        corpus.require(PRESETS[preset].model.block_size, "take a longer text, or another --preset")
    best = str(choose_dtype("auto", device)).removeprefix("torch.")
    symbols = max(baseline.VOCAB_SIZE, len(corpus.alphabet))
    if find_spec("transformers") is None:
        notices.print('transformers is missing, and so are its rows: pip install -c constraints.txt -e ".[peers]"')
    options = {"corpus": corpus.summary(), "device": device.type}
    options |= {"nanogpt": str(args.nanogpt.absolute())} if args.nanogpt else {}

    def entry(variant: Variant) -> TrainingEntry:
        return TrainingEntry(variant, options, seconds)

    groups = [
        [entry(variant) for variant in variants(preset, symbols, best, args.nanogpt is not None)]
        for preset in args.preset
    ]
    points = scaling.POINTS if args.scaling else []
    scaled = [
        (point, entry(point.variant(symbols, best if point.engine == "charformer" else "float32"))) for point in points
    ]
    interrupted = False
    try:
        with Progress(console=notices, transient=True) as progress:
            task = progress.add_task("", total=sum(map(len, groups)) * (1 + args.rounds) + 2 * len(scaled))

            def done(doing: str) -> None:
                progress.update(task, advance=1, description=doing)

            for group in groups:
                interleave(group, args.rounds, done)
            for _, alone in scaled:
                interleave([alone], 1, done)
    except KeyboardInterrupt:
        interrupted = True
        notices.print("interrupted; what was measured so far:")

    config = {
        "presets": list(args.preset),
        "device": device.type,
        "rounds": args.rounds,
        "seconds": seconds,
        "corpus": {key: value for key, value in corpus.summary().items() if key != "source"},
        "vocab_size": symbols,
    }
    rows, facts = _result(config, groups, scaled, curves)
    console = Console(width=None if Console().is_terminal else 150)
    throughput_tables.show({"config": config, "machine": results.machine(), "rows": rows} | facts, console)
    keep(args, config, rows, **facts)
    return 130 if interrupted else 0


def variants(preset: str, vocab_size: int, best: str, nanogpt: bool) -> list[Variant]:
    """Return everything that trains at a preset's shape and batch, ours first.

    ``best`` is the dtype that ``auto`` chooses on this machine; its variant comes first of all.
    """
    chosen = PRESETS[preset]
    shape = replace(chosen.model, vocab_size=vocab_size)

    def variant(engine: str, precision: str, *differs: str, **more: Any) -> Variant:
        differs += (BF16,) if precision == "bfloat16" and engine != "matmuls" else ()
        return Variant(engine, preset, shape, chosen.pretrain.batch_size, precision, differs=differs, **more)

    dtypes = dict.fromkeys(("float32", best))
    ours = (*CORRECTED, *_recipe(chosen))
    found = [variant("charformer", precision, *ours) for precision in reversed(dtypes)]
    found += [variant("charformer", best, *ours, less, freeze=freeze) for freeze, less in LESS.items()]
    found.append(variant("baseline", "float32"))
    if find_spec("transformers"):
        found += [variant("transformers", precision, *GPT2) for precision in dtypes]
    if nanogpt:
        found += [
            variant("nanogpt", precision, *NANOGPT, compiled=compiled)
            for precision in dtypes
            for compiled in (False, True)
        ]
    return found + [variant("matmuls", precision) for precision in dtypes]


def _recipe(preset: Preset) -> tuple[str, ...]:
    """Return the ways in which our model and optimizer differ from the baseline's; the peers keep the baseline's."""
    switches = {
        "rotary positions": preset.model.rope_base,
        "squared ReLU": preset.model.relu_power == 2,
        "Muon": preset.pretrain.muon_learning_rate,
        "no dropout on attention weights": preset.model.dropout and not preset.model.attention_dropout,
    }
    return tuple(name for name, on in switches.items() if on)


def _result(
    config: dict[str, Any],
    groups: list[list[TrainingEntry]],
    scaled: list[tuple[scaling.Point, TrainingEntry]],
    curves: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of the result file, and its other entries."""
    rows = []
    for group in groups:
        peaks = _peaks(group)
        rows += [entry.row("interleaved", peaks) for entry in group]
    rows += [entry.row("scaling", {}, axis=point.axis, value=point.value) for point, entry in scaled]
    projections = [found for preset in config["presets"] if (found := projection.project(rows, preset))]
    names = (
        "preset",
        "baseline_minutes",
        "charformer_minutes",
        "rtx3050_published_minutes",
        "rtx3050_predicted_minutes",
    )
    smallest = min(projections, key=itemgetter("baseline_minutes")) if projections else dict.fromkeys(names)
    everything = [entry for group in groups for entry in group]
    return rows, {
        "projection": smallest | {"shapes": projections},
        "gemm_peak": {name: _peaks(everything).get(name) for name in ("float32", "bfloat16")},
        "noisy_machine": any(entry.noise > results.NOISY for entry in everything),
        "times_to_loss": projection.times_to_loss(rows, curves),
        "scaling": scaling.fits(rows),
    }


def _peaks(group: list[TrainingEntry]) -> dict[str, float]:
    """Return the highest FLOP/s of a matrix product, by dtype."""
    found: dict[str, float] = {}
    for entry in group:
        if speed := entry.facts.get("flops_per_second"):
            precision = entry.variant.precision
            found[precision] = max(speed, found.get(precision, 0.0))
    return found


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return number


if __name__ == "__main__":
    sys.exit(main())

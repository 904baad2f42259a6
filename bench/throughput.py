"""Measure how fast this machine trains, against the baseline, other libraries, and matrix products alone.

    python -m bench.throughput                            the baseline's two shapes
    python -m bench.throughput --preset nano              another preset's shape
    python -m bench.throughput --nanogpt ../nanoGPT       with nanoGPT from your own checkout, some minutes more
    python -m bench.throughput --scaling                  with growth by context, batch and width, longer still

transformers takes part if it is installed: pip install -c constraints.txt -e ".[peers]".
"""

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.engines import baseline
from bench.engines.train_nanogpt import require
from bench.engines.variant import Variant
from bench.harness import projection, results, scaling
from bench.harness.interleave import interleave
from bench.harness.program import BenchParser, execute, keep, load_text, print_table, text_config
from bench.harness.speeds import print_speeds
from bench.harness.training import PHASES, TrainingEntry
from charformer.device import choose_device, choose_dtype
from charformer.presets import PRESETS, Preset
from charformer.ui.console import PlainConsole, progress_bar

CORRECTED = (
    "scores scaled by the head's width, not the model's",
    "final layer norm applied",
    "glibc keeps freed memory",
)
GPT2 = ("GELU, tied head, dropout on embeddings too, AdamW",)
NANOGPT = (*GPT2, "no biases", "gradient clipping")
LESS = {"attention": "no gradients of attention's weights", "trunk": "no pass back through the blocks, no dropout"}
BF16 = "bf16 matrix products"
NOISY = 1.15  # ratio of a variant's slowest turn to its fastest, above which the machine is noisy


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("throughput", __doc__)
    parser.add_presets(*projection.SHAPES)
    parser.add_data()
    parser.add_device()
    parser.add_count("--rounds", 2, "turns of each variant")
    seconds = "seconds of a turn, which takes from two to 400 steps (default: 5)"
    parser.add_argument("--seconds", type=float, default=5.0, metavar="X", help=seconds)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="also train nanoGPT from this checkout")
    scaling_help = "also fit how the cost grows with context, batch and width"
    parser.add_argument("--scaling", action="store_true", help=scaling_help)
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if args.nanogpt:
        require(args.nanogpt)
    device = choose_device(args.device)
    notices = PlainConsole(stderr=True)
    corpus = load_text(args.data)
    for preset in args.preset:
        corpus.require(PRESETS[preset].model.block_size, "take a longer text, or another --preset")
    best = str(choose_dtype("auto", device)).removeprefix("torch.")
    symbols = max(baseline.VOCAB_SIZE, len(corpus.alphabet))
    if find_spec("transformers") is None:
        notices.print('transformers is missing, and so are its rows: pip install -c constraints.txt -e ".[peers]"')
    options = {"corpus": corpus.summary(), "device": device.type}
    options |= {"nanogpt": str(args.nanogpt.absolute())} if args.nanogpt else {}

    groups = [
        [TrainingEntry(variant, options, args.seconds) for variant in variants(preset, symbols, best, args.nanogpt)]
        for preset in args.preset
    ]
    points = scaling.points(symbols, best) if args.scaling else []
    scaled = [TrainingEntry(variant, options, args.seconds) for *_, variant in points]
    interrupted = False
    try:
        with progress_bar(notices) as on_progress:
            for group in groups:
                interleave(group, args.rounds, on_progress)
            for entry in scaled:
                interleave([entry], 1, on_progress)
    except KeyboardInterrupt:
        interrupted = True
        notices.print("interrupted; what was measured so far:")

    rows = [entry.row("interleaved", _peaks(group)) for group in groups for entry in group]
    rows += [
        entry.row("scaling", {}, axis=axis, value=value) for entry, (axis, value, _) in zip(scaled, points, strict=True)
    ]
    facts = {
        "projection": [found for preset in args.preset if (found := projection.project(rows, preset))],
        "noisy_machine": any(max(row["turns"]) > NOISY * min(row["turns"]) for row in rows if row["turns"]),
        "scaling": scaling.fits(rows),
    }
    print_speeds({"throughput": [row for row in rows if row["part"] == "interleaved"]})
    _print_steps(rows)
    _print_facts(facts)
    config = {"presets": args.preset, "device": device.type, "rounds": args.rounds, "seconds": args.seconds}
    keep(args, config | {"corpus": text_config(corpus.summary()), "vocab_size": symbols}, rows, **facts)
    return 130 if interrupted else 0


def variants(preset: str, vocab_size: int, best: str, nanogpt: Path | None) -> list[Variant]:
    """Return everything that trains at a preset's shape and batch, ours first.

    ``best`` is the dtype that ``auto`` chooses on this machine; its variant comes first of all. ``nanogpt`` is a
    checkout of nanoGPT, whose variants are left out without one.
    """
    chosen = PRESETS[preset]
    shape = replace(chosen.model, vocab_size=vocab_size)

    def variant(engine: str, precision: str, *differs: str, **more: Any) -> Variant:
        differs += (BF16,) if precision == "bfloat16" and engine != "matmuls" else ()
        model = shape if engine in ("charformer", "matmuls") else replace(shape, ngram_order=0)
        return Variant(engine, preset, model, chosen.pretrain.batch_size, precision, differs=differs, **more)

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
        "n-gram prior": preset.model.ngram_order,
        "Muon": preset.pretrain.muon_learning_rate,
        "no dropout on attention weights": preset.model.dropout and not preset.model.attention_dropout,
    }
    return tuple(name for name, on in switches.items() if on)


def _peaks(group: list[TrainingEntry]) -> dict[str, float]:
    """Return the highest FLOP/s of a matrix product in the turns of ``group``, by dtype."""
    found: dict[str, float] = {}
    for entry in group:
        if speed := entry.flops_per_second:
            found[entry.variant.precision] = max(speed, found.get(entry.variant.precision, 0.0))
    return found


def _print_steps(rows: list[dict[str, Any]]) -> None:
    """Print the parts of each variant's steps, its error if it failed, how its work differs from the baseline's, and
    the speed of matrix products that MFU is relative to."""
    shown = []
    for row in rows:
        milliseconds = {name: 1e3 * seconds for name, seconds in (row["parts"] or {}).items() if seconds is not None}
        shown.append(row | {"label": results.label(row), "milliseconds": milliseconds})
    columns = {"preset": "{preset}", "variant": "{label}", "parameters": "{parameters:,}"}
    columns |= {name: f"{{milliseconds[{name}]:,.1f}}" for name in (*PHASES, "evaluation")}
    print_table("where the time of a step goes, milliseconds", shown, columns | {"failed": "{error}"})
    for row in shown:
        if row["differs"]:
            print(f"{row['preset']}, {row['label']}: {'; '.join(row['differs'])}")
        if row["flops_per_second"]:
            reached = f"{row['flops_per_second'] / 1e9:,.0f} GFLOP/s"
            print(f"{row['preset']}, {row['label']}: at most {reached}; MFU in {row['precision']} is the share of that")


def _print_facts(facts: dict[str, Any]) -> None:
    if facts["noisy_machine"]:
        print("noisy machine: turns of one variant differ by more than 15 %; trust ratios alone")
    if facts["scaling"]:
        columns = {"axis": "{axis}", "engine": "{engine}", "exponent": "{exponent:+.2f}"}
        print_table("growth of a character's cost", facts["scaling"], columns)
    if facts["projection"]:
        title = "the baseline's whole job, 2 x 5,000 steps and their evaluations, projected to minutes here"
        columns = {"shape": "{preset}", "the baseline": "{baseline_minutes:,.0f}"}
        print_table(title, facts["projection"], columns | {"charformer": "{charformer_minutes:,.1f}"})
        print("On its page the baseline takes 30 minutes on an RTX 3050, for a shape that the page does not state.")


if __name__ == "__main__":
    sys.exit(main())

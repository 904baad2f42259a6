"""charformer-train: pretrain on a text, or fine-tune a pretrained run on another."""

import argparse
import json
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from charformer import corpus as corpora
from charformer import sampling
from charformer.commands.common import Parser, execute
from charformer.config import PRESETS, ModelConfig, TrainConfig
from charformer.display import TrainingDisplay, reading
from charformer.errors import UserError
from charformer.rundir import RunDir, write_text

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes in the arguments do without it
    from charformer.stages import Start
    from charformer.trainer import Trainer

DEFAULT_DATA = {"pretrain": "tiny-shakespeare", "finetune": "ace-attorney"}
DEFAULT_PRESET = "nano"
MODEL_FIELDS = [item for item in fields(ModelConfig) if item.name != "vocab_size"]
SAMPLE_CHARACTERS = 500

EXAMPLES = """\
presets:
{presets}

examples:
  charformer-train                                      pretrain on Tiny Shakespeare, into runs/pretrain
  charformer-train --data novel.txt --out runs/novel    pretrain on a text of your own
  charformer-train --stage finetune --freeze            adapt runs/pretrain to a second text, attention frozen
  charformer-train --resume                             continue a run that was stopped
"""


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return execute(_parser(), argv, _run)


def _parser() -> Parser:
    presets = "\n".join(
        f"  {name:<18} {p.model.n_layer} blocks, {p.model.n_head} heads, {p.model.n_embd} wide, context "
        f"{p.model.block_size}; {p.pretrain.max_steps:,} steps, then {p.finetune.max_steps:,}"
        for name, p in PRESETS.items()
    )
    parser = Parser(
        "charformer-train", "Pretrain a character-level GPT, or fine-tune one.", EXAMPLES.format(presets=presets)
    )
    parser.add_argument(
        "--stage", choices=DEFAULT_DATA, help="pretrain starts anew, finetune from --init-from (default: pretrain)"
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help=f"model and training (default: {DEFAULT_PRESET}; of a fine-tune: its checkpoint's)",
    )
    parser.add_argument(
        "--data",
        metavar="FILE|NAME",
        help=f"a UTF-8 text, or one of {', '.join(corpora.NAMES)} "
        "(default: tiny-shakespeare; of a fine-tune: ace-attorney)",
    )
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/pretrain or runs/finetune)")
    parser.add_argument(
        "--init-from", metavar="DIR", help="the run that a fine-tune starts from (default: runs/pretrain)"
    )
    parser.add_argument(
        "--freeze",
        nargs="?",
        const="attention",
        choices=("attention", "trunk"),
        help="what a fine-tune leaves as it is: attention (meant by --freeze alone), or trunk, "
        "which is all but the head and the last layer norm (default: nothing)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes a GPU where there is one (default: auto)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of matrix products; auto takes bfloat16 where the processor has it (default: auto)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the sample at the end continues (default: a newline)")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout a summary in JSON")
    for title, items in (
        ("model (default: the preset's)", MODEL_FIELDS),
        ("training (default: the preset's)", fields(TrainConfig)),
    ):
        group = parser.add_argument_group(title)
        for item in items:
            flag = "--steps" if item.name == "max_steps" else "--" + item.name.replace("_", "-")
            kind = float if item.type is float else int
            group.add_argument(
                flag, dest=item.name, type=kind, metavar="X" if kind is float else "N", help=item.metadata["help"]
            )
    return parser


def _run(args: argparse.Namespace) -> int:
    stage = args.stage or "pretrain"
    run = RunDir(args.out or f"runs/{stage}")
    _check(args, stage, run)
    console, notices = Console(), Console(stderr=True)
    trainer, start = _prepare(args, stage, run, console, notices)
    counters, config = trainer.counters, trainer.config

    from charformer.device import memory_bytes
    from charformer.freeze import count_parameters

    trainable, frozen = count_parameters(start.model)
    record, dtype = start.record, str(trainer.dtype).removeprefix("torch.")
    console.print(
        f"{record['stage']} on {trainer.corpus.name} ({len(trainer.corpus.ids):,} characters, "
        f"{len(trainer.corpus.alphabet)} distinct), preset {record['preset']}, into {run.path}\n"
        f"{trainable:,} parameters train, {frozen:,} are frozen ({record['freeze']}); {trainer.device.type}, {dtype}",
        soft_wrap=True,
        highlight=False,
    )
    if len(trainer.corpus.alphabet) == 1:
        notices.print("warning: the text has one distinct character; there is nothing to learn", highlight=False)

    with (
        _stop_signals() as stop,
        TrainingDisplay(
            console,
            title=f"{start.record['stage']} · {trainer.corpus.name} · {run.path}",
            first_step=counters.step,
            max_steps=config.max_steps,
            characters_per_step=config.batch_size * start.model.config.block_size,
            memory=lambda: memory_bytes(trainer.device),
            history=[(row["step"], row["train_loss"], row["val_loss"]) for row in trainer.history],
        ) as display,
    ):
        for progress in trainer.steps(stopped=lambda: bool(stop)):
            display.update(progress)
    if stop and counters.step < config.max_steps:
        again = f"charformer-train --stage {start.record['stage']} --resume --out {run.path}"
        notices.print(
            f"stopped and saved after step {counters.step:,}; to go on: {again}", soft_wrap=True, highlight=False
        )
        return 128 + stop[0]
    summary = _finish(trainer, start, run, args.prompt, console)
    summary["peak_memory_bytes"] = memory_bytes(trainer.device)
    summary |= {"trainable": trainable, "frozen": frozen, "out": str(run.path), "corpus": trainer.corpus.summary()}
    if args.json:
        print(json.dumps(summary))
    return 0


def _given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _check(args: argparse.Namespace, stage: str, run: RunDir) -> None:
    """Refuse what cannot work, before anything takes time."""
    model_flags = ["--" + name.replace("_", "-") for name in _given(args, [item.name for item in MODEL_FIELDS])]
    if args.resume:
        fixed = model_flags + [
            "--" + name.replace("_", "-")
            for name in _given(args, ["preset", "init_from", "freeze", "seed", "batch_size"])
        ]
        if fixed:
            raise UserError(f"{fixed[0]} is fixed once a run has begun; leave it out with --resume")
        if args.overwrite:
            raise UserError("--resume continues a run, --overwrite replaces it; choose one")
        run.read_config()
        return
    if stage == "finetune":
        if model_flags:
            raise UserError(f"{model_flags[0]} is the checkpoint's in a fine-tune; leave it out, or pretrain with it")
        source = RunDir(args.init_from or "runs/pretrain")
        if not source.exists:
            raise UserError(
                f"there is no run in {source.path} to fine-tune; "
                "`charformer-train` makes runs/pretrain, --init-from names another"
            )
        if source.path.resolve() == run.path.resolve():
            raise UserError("--out and --init-from are the same folder; a fine-tune needs one of its own")
    elif args.freeze or args.init_from:
        flag = "--freeze" if args.freeze else "--init-from"
        raise UserError(f"{flag} is for fine-tuning; add --stage finetune")
    run.check_free(args.overwrite)


def _prepare(
    args: argparse.Namespace, stage: str, run: RunDir, console: Console, notices: Console
) -> "tuple[Trainer, Start]":
    """Load the text, build or load the model, and open the run's folder."""
    from charformer import device as machine
    from charformer import stages
    from charformer.trainer import Trainer

    source = RunDir(args.init_from or "runs/pretrain")
    data = args.data
    if args.resume and data is None:
        began_on = stages.recorded(run, "corpus")
        data = str(began_on["source"] if Path(str(began_on.get("source"))).is_absolute() else began_on.get("name"))
    with reading(console) as on_progress:
        if data is not None:
            corpus = corpora.load(data, on_progress)
        else:
            notice = lambda text: notices.print(f"note: {text}", soft_wrap=True, highlight=False)  # noqa: E731
            corpus = corpora.load_or_stand_in(DEFAULT_DATA[stage], on_progress, notice)

    changes = _given(args, [item.name for item in fields(TrainConfig)])
    if args.resume:
        start = stages.resume(run, changes, corpus)
    elif stage == "finetune":
        preset = args.preset or stages.preset_of(source)
        start = stages.finetune(
            source, replace(PRESETS[preset].finetune, **changes), preset, args.freeze or "none", corpus
        )
    else:
        preset = args.preset or DEFAULT_PRESET
        shape = replace(PRESETS[preset].model, **_given(args, [item.name for item in MODEL_FIELDS]))
        start = stages.pretrain(shape, replace(PRESETS[preset].pretrain, **changes), preset, corpus)

    sampling.encode_prompt(start.vocab, args.prompt or "", skip_unknown=False)  # a bad one is no end to a long training
    device = machine.choose_device(args.device)
    dtype = machine.choose_dtype(args.dtype, device)
    machine.keep_freed_memory()
    trainer = Trainer(start.model.to(device), start.vocab, corpus, start.config, run, device, dtype)
    if args.resume:
        trainer.resume()
    else:
        run.start()
        run.write_vocab(start.vocab)
    run.write_config(
        start.record
        | {
            "model": start.model.config.to_dict(),
            "training": start.config.to_dict(),
            "corpus": corpus.summary(),
            "machine": machine.describe(device, dtype),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("charformer", "torch", "numpy")},
        }
    )
    return trainer, start


def _finish(trainer: "Trainer", start: "Start", run: RunDir, prompt: str | None, console: Console) -> dict[str, Any]:
    """Score the best weights, draw the curves, sample; print it all and return the summary."""
    from charformer.plots import plot_losses
    from charformer.torch_engine import TorchEngine

    counters = trainer.counters
    val_loss = trainer.whole_validation_loss()
    stages = [(f"{start.record['stage']} on {trainer.corpus.name}", trainer.history)]
    source = RunDir(start.record["init_from"]) if start.record["init_from"] else None
    if source and source.exists and (rows := source.read_metrics()):
        stages.insert(0, (f"pretrain on {source.read_config()['corpus']['name']}", rows))
    plot_losses(run, stages)

    ids = sampling.encode_prompt(start.vocab, prompt or "", skip_unknown=False)
    config = sampling.SamplingConfig(max_new_tokens=SAMPLE_CHARACTERS, seed=trainer.config.seed)
    engine = TorchEngine(start.model, trainer.device)
    made = sampling.generate(engine, ids, 1, config)
    text = start.vocab.decode(np.concatenate([ids, *made]))
    write_text(run.sample, text)

    console.rule("sample")
    console.print(text.strip("\n"), markup=False, highlight=False, soft_wrap=True)
    console.rule()
    doing = "fine-tuning" if start.record["stage"] == "finetune" else "training"
    for name, value in (
        (
            "validation loss",
            f"{val_loss:.4f} nats a character, whole split, best weights (step {counters.best_step:,})",
        ),
        (
            doing,
            f"{counters.train_seconds:.1f} s for {counters.characters:,} characters, and "
            f"{counters.eval_seconds:.1f} s of evaluation",
        ),
        ("curves", str(run.plot)),
        ("run", str(run.path)),
        ("next", f"charformer-sample --run {run.path}"),
    ):
        console.print(f"{name:>16}  {value}", highlight=False, soft_wrap=True)
    return {
        "val_loss": val_loss,
        "best_step": counters.best_step,
        "steps": counters.step,
        "characters": counters.characters,
        "train_seconds": counters.train_seconds,
        "eval_seconds": counters.eval_seconds,
    }


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gains the number of the first SIGINT or SIGTERM; a second one takes its usual course."""
    received: list[int] = []

    def take(number: int, _frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    raise SystemExit(main())

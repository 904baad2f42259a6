"""charformer-train: pretrain on a text, or fine-tune a pretrained run on another."""

import argparse
import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charformer import corpus as corpora
from charformer import sampling
from charformer.commands.common import Parser, execute
from charformer.config import PRESETS, ModelConfig, TrainConfig
from charformer.display import PlainConsole, TrainingDisplay, printable, progress_bar
from charformer.errors import UserError, WriteError
from charformer.rundir import RunDir
from charformer.runlock import locked

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes in the arguments do without it
    from charformer.stages import Start
    from charformer.trainer import Trainer

DEFAULT_DATA = {"pretrain": "tiny-shakespeare", "finetune": "ace-attorney"}
DEFAULT_PRESETS = {"cpu": "nano", "cuda": "fast"}  # by device
CLOSED_PIPE = 13  # SIGPIPE's number, which Windows has no name for
MODEL_FIELDS = [item.name for item in fields(ModelConfig) if item.name != "vocab_size"]
TRAIN_FIELDS = [item.name for item in fields(TrainConfig)]

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
        help="model and training (default: nano on the CPU, fast on a GPU; of a fine-tune: its checkpoint's)",
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
    parser.add_argument(
        "--detect-anomaly", action="store_true", help="find the operation whose gradient is nan first; slow"
    )
    parser.add_argument("--verbose", action="store_true", help="say which code runs attention, layer norm and loss")
    for title, items in (
        ("model (default: the preset's)", fields(ModelConfig)),
        ("training (default: the preset's)", fields(TrainConfig)),
    ):
        group = parser.add_argument_group(title)
        for item in items:
            if item.name == "vocab_size":  # the text's own
                continue
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
    console, notices = PlainConsole(), PlainConsole(stderr=True)
    with ExitStack() as held:
        trainer, start = _prepare(args, stage, run, console, notices, held)
        return _train(args, trainer, start, console, notices)


def _train(
    args: argparse.Namespace, trainer: "Trainer", start: "Start", console: PlainConsole, notices: PlainConsole
) -> int:
    """Train to the end or to a signal; returns the exit code."""
    import torch

    from charformer.device import memory_bytes
    from charformer.freeze import count_parameters
    from charformer.outcome import conclude, draw
    from kernels.backend import describe as describe_kernels

    run, counters, corpus, record = trainer.run, trainer.counters, trainer.corpus, start.record
    trainable, frozen = count_parameters(start.model)
    about = (
        f"{record['stage']} on {corpus.name} ({len(corpus.ids):,} characters, {len(corpus.alphabet)} distinct), "
        f"preset {record['preset']}, into {run.path}\n"
        f"{trainable:,} parameters train, {frozen:,} are frozen ({record['freeze']}); "
        f"{trainer.device.type}, {str(trainer.dtype).removeprefix('torch.')}"
    )
    console.print(printable(about))
    if args.verbose:
        notices.print(describe_kernels(trainer.device))
    if len(corpus.alphabet) == 1:
        notices.print("warning: the text has one distinct character; there is nothing to learn")

    display = TrainingDisplay(
        console,
        title=printable(f"{record['stage']} · {corpus.name} · {run.path}"),
        first_step=counters.step,
        max_steps=trainer.config.max_steps,
        characters_per_step=trainer.config.batch_size * start.model.config.block_size,
        memory=lambda: memory_bytes(trainer.device),
        history=[(row["step"], row["train_loss"], row["val_loss"]) for row in trainer.history],
    )
    teller = console if console.is_interactive else notices  # above the live panel, not through it
    with _stop_signals(teller) as stop, display, torch.autograd.set_detect_anomaly(args.detect_anomaly):
        try:
            for progress in trainer.steps(lambda: bool(stop)):
                try:
                    display.update(progress)
                except BrokenPipeError:
                    stop.append(CLOSED_PIPE)
        except WriteError as error:
            raise UserError(f"{error}; {_rescued(trainer, start)}") from error
    try:
        draw(trainer, start)
    except Exception as error:  # whatever a font or a broken source run does to it, a picture is not worth the summary
        notices.print(f"warning: no {run.plot}: {error}")
    if stop and counters.step < trainer.config.max_steps:
        with suppress(OSError):
            notices.print(f"saved after step {counters.step:,}; to go on: {_again(record['stage'], run)}")
        return 128 + stop[0]

    with progress_bar(console) as on_progress:
        outcome = conclude(trainer, start, lambda done, total: on_progress("scoring the validation split", done, total))
    console.rule("sample")
    console.print(printable(outcome.sample.strip("\n")))
    console.rule()
    summary = {
        "val_loss": outcome.val_loss,
        **{key: vars(counters)[key] for key in ("best_step", "characters", "train_seconds", "eval_seconds")},
        "steps": counters.step,
        "trainable": trainable,
        "frozen": frozen,
        "peak_memory_bytes": memory_bytes(trainer.device),
        "out": str(run.path),
        "corpus": corpus.summary(),
    }
    _summarise(summary, record["stage"], run, console)
    if args.json:
        print(json.dumps(summary))
    return 0


def _again(stage: str, run: RunDir) -> str:
    """The command that continues a run."""
    return shlex.join(["charformer-train", "--stage", stage, "--resume", "--out", str(run.path)])


def _rescued(trainer: "Trainer", start: "Start") -> str:
    """What became of a training whose folder can no longer be written to."""
    from charformer import stages

    if not trainer.counters.step:
        return "nothing was trained yet"
    try:
        run = stages.rescue(trainer, start)
    except UserError as error:
        return f"the training could not be saved elsewhere: {error}"
    again = _again(start.record["stage"], run)
    return f"the training was saved in {run.path} instead, after step {trainer.counters.step:,}; to go on: {again}"


def _summarise(summary: dict[str, Any], stage: str, run: RunDir, console: PlainConsole) -> None:
    seconds = f"{summary['train_seconds']:.1f} s for {summary['characters']:,} characters"
    lines = {
        "validation loss": f"{summary['val_loss']:.4f} nats a character, whole split, best weights "
        f"(step {summary['best_step']:,})",
        "fine-tuning" if stage == "finetune" else "training": f"{seconds}, and {summary['eval_seconds']:.1f} s of "
        "evaluation on the way",
        "curves": str(run.plot),
        "run": str(run.path),
        "next": shlex.join(["charformer-sample", "--run", str(run.path)]),
    }
    for name, value in lines.items():
        console.print(f"{name:>16}  {value}")


def _given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _check(args: argparse.Namespace, stage: str, run: RunDir) -> None:
    """Refuse what cannot work, before anything takes time."""
    model_flags = ["--" + name.replace("_", "-") for name in _given(args, MODEL_FIELDS)]
    if args.resume:
        given = _given(args, ["preset", "init_from", "freeze", "seed", "batch_size", "eval_batches"])
        if fixed := model_flags + ["--" + name.replace("_", "-") for name in given]:
            raise UserError(f"{fixed[0]} is fixed once a run has begun; leave it out with --resume")
        if args.overwrite:
            raise UserError("--resume continues a run, --overwrite replaces it; choose one")
        began_as = run.read_config().get("stage")
        if args.stage not in (None, began_as):
            raise UserError(f"the run in {run.path} is of stage {began_as}; leave out --stage {args.stage}")
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
        if run.path.exists() and source.path.samefile(run.path):
            raise UserError("--out and --init-from are the same folder; a fine-tune needs one of its own")
    elif args.freeze or args.init_from:
        flag = "--freeze" if args.freeze else "--init-from"
        raise UserError(f"{flag} is for fine-tuning; add --stage finetune")
    run.check_free(args.overwrite)


def _prepare(
    args: argparse.Namespace, stage: str, run: RunDir, console: PlainConsole, notices: PlainConsole, held: ExitStack
) -> "tuple[Trainer, Start]":
    """Load the text, build or load the model, and open the run's folder, whose lock ``held`` then holds."""
    from charformer import device as machine
    from charformer import stages

    changes = _given(args, TRAIN_FIELDS)
    if args.resume:
        held.enter_context(locked(run))
        began_on = run.read_section("machine")
        device = machine.choose_device(str(began_on.get("device")) if args.device == "auto" else args.device)
        dtype = machine.choose_dtype(str(began_on.get("dtype")) if args.dtype == "auto" else args.dtype, device)
        data = args.data or _recorded_data(run.read_section("corpus"))
        start = stages.resume(run, changes, _load(data, stage, console, notices))
    else:
        device = machine.choose_device(args.device)
        dtype = machine.choose_dtype(args.dtype, device)
        source = RunDir(args.init_from or "runs/pretrain")
        preset = args.preset or (stages.preset_of(source) if stage == "finetune" else DEFAULT_PRESETS[device.type])
        shape = replace(PRESETS[preset].model, **_given(args, MODEL_FIELDS))  # a fine-tune's is its checkpoint's
        course = replace(getattr(PRESETS[preset], stage), **changes)
        corpus = _load(args.data, stage, console, notices)
        if stage == "finetune":
            start = stages.finetune(source, course, preset, args.freeze or "none", corpus)
        else:
            start = stages.pretrain(shape, course, preset, corpus)
    if args.prompt is not None:
        sampling.encode_prompt(start.vocab, args.prompt)  # now, not at the end of a long training
        start.record["prompt"] = args.prompt
    machine.keep_freed_memory()
    if not args.resume:
        held.enter_context(locked(run))
        run.check_free(args.overwrite)  # what another training has left there since
    open_run = stages.reopen_run if args.resume else stages.open_run
    return open_run(start, run, device, dtype), start


def _load(data: str | None, stage: str, console: PlainConsole, notices: PlainConsole) -> corpora.Corpus:
    with progress_bar(console) as on_progress:
        if data is not None:
            return corpora.load(data, on_progress)
        return corpora.load_or_stand_in(DEFAULT_DATA[stage], on_progress, lambda text: notices.print(f"note: {text}"))


def _recorded_data(recorded: dict[str, Any]) -> str:
    """What --data loads the text of a run again: a file by its path, anything else by its name."""
    source = str(recorded.get("source"))
    return source if Path(source).is_absolute() else str(recorded.get("name"))


@contextmanager
def _stop_signals(teller: PlainConsole) -> Iterator[list[int]]:
    """A list that gains the number of the first SIGINT, SIGTERM or SIGHUP; a second one takes its usual course.

    A signal that whoever started us has had ignored (nohup does that) stays ignored.
    """
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def take(number: int, _frame: object) -> None:
        received.append(number)
        restore()
        with suppress(OSError):  # a terminal that has gone away; what matters is the save
            teller.print("stopping after this step; once more leaves at once")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, take)
    try:
        yield received
    finally:
        restore()


if __name__ == "__main__":
    raise SystemExit(main())

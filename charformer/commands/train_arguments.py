"""The arguments of charformer-train, and the checks of their combinations."""

import argparse
from dataclasses import fields
from typing import Any

from charformer.commands.common import Parser, nonempty
from charformer.config import (
    DEVICES,
    DROPOUTS,
    FIXED_FIELDS,
    MODEL_FIELDS,
    SCORE_CHARACTERS,
    ModelConfig,
    TrainConfig,
    check_threads,
)
from charformer.data import corpus as corpora
from charformer.data.text_files import checked_encoding
from charformer.errors import UserError
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.training.distributed import World
from charformer.ui.tensorboard import require_tensorboard

DEFAULT_DATA = {"pretrain": "tiny-shakespeare", "finetune": "ace-attorney"}

EXAMPLES = """\
presets:
{presets}

examples:
  charformer-train                                      pretrain on Tiny Shakespeare, into runs/pretrain
  charformer-train novel.txt --out runs/novel           pretrain on a text of your own
  charformer-train --stage finetune --freeze            adapt runs/pretrain to a second text, attention frozen
  charformer-train --resume                             continue a run that was stopped
  charformer-train --preset fast --plan                 what memory and time a training takes here
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    presets = "\n".join(
        f"  {name:<18} {p.model.n_layer} blocks, {p.model.n_head} heads, {p.model.n_embd} wide, context "
        f"{p.model.block_size}; {p.pretrain.max_steps:,} steps, then {p.finetune.max_steps:,}"
        for name, p in PRESETS.items()
    )
    parser = Parser(
        "charformer-train", "Pretrain a character-level GPT, or fine-tune one.", EXAMPLES.format(presets=presets)
    )
    parser.add_argument(
        "texts", nargs="*", type=nonempty, metavar="TEXT", help="texts to train on, as --data takes them"
    )
    parser.add_argument(
        "--stage",
        choices=DEFAULT_DATA,
        help="pretrain starts from nothing, finetune from --init-from (default: finetune with --init-from, else "
        "pretrain)",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="model and training (default: nano; fast on an NVIDIA GPU; of a fine-tune: its checkpoint's)",
    )
    parser.add_argument(
        "--data",
        type=nonempty,
        metavar="FILE|NAME",
        nargs="+",
        action="extend",
        help="texts to train on, one after the other: files, folders of text files, - for standard input, or names: "
        f"{', '.join(corpora.NAMES)} (default: tiny-shakespeare; of a fine-tune: ace-attorney)",
    )
    parser.add_argument(
        "--encoding", metavar="NAME", help="encoding of the files, such as cp1252 or utf-16 (default: utf-8)"
    )
    parser.add_argument(
        "--validation", type=nonempty, metavar="FILE", help="validate on this text (default: on a part of --data)"
    )
    parser.add_argument(
        "--validation-share", type=float, metavar="X", help="share of the text that validates (default: 0.1)"
    )
    parser.add_argument(
        "--validation-split",
        choices=corpora.SPLITS,
        help="the part of the text that validates: its tail, or blocks spread over it, which suit a text whose end is "
        "unlike the rest (default: tail)",
    )
    parser.add_argument(
        "--out", type=nonempty, metavar="DIR", help="the run's folder (default: runs/pretrain or runs/finetune)"
    )
    parser.add_argument(
        "--init-from",
        type=nonempty,
        metavar="DIR",
        help="the run that a fine-tune starts from (default: runs/pretrain)",
    )
    parser.add_argument(
        "--freeze",
        nargs="?",
        const="attention",
        choices=("attention", "trunk", "all"),
        help="what a fine-tune freezes: attention (also meant by --freeze without a value), trunk, which is everything "
        "except the head and the last layer norm, or all, which trains nothing and counts a new n-gram table "
        "(default: nothing)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="train nothing, but estimate memory and time from a short probe"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto uses an NVIDIA GPU if there is one; mps is Apple's GPU (default: auto)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="dtype of matrix products; auto takes bfloat16 where the processor has it (default: auto)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="processor threads (default: one for each processor that other programs leave idle; of a resumed run: "
        "what it began with, so that it continues bit for bit)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the sample at the end continues (default: a newline)")
    parser.add_argument(
        "--sample-interval",
        type=int,
        metavar="N",
        help="steps between samples of the model's text; 0 is none (default: at each evaluation)",
    )
    parser.add_argument(
        "--score-characters",
        type=int,
        default=SCORE_CHARACTERS,
        metavar="N",
        help="score at most about N characters of the validation split at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--log", choices=("tensorboard",), help="log the training for TensorBoard too, in the run's folder"
    )
    parser.add_argument("--json", action="store_true", help="make the last line of stdout a summary in JSON")
    parser.add_argument(
        "--detect-anomaly", action="store_true", help="find the operation whose gradient is nan first; slow"
    )
    parser.add_argument("--verbose", action="store_true", help="print which code runs attention, layer norm and loss")
    for title, items in (
        ("model (default: the preset's)", fields(ModelConfig)),
        ("training (default: the preset's)", fields(TrainConfig)),
    ):
        group = parser.add_argument_group(title)
        for item in items:
            if item.name == "vocab_size":  # the text decides it
                continue
            flag = "--steps" if item.name == "max_steps" else "--" + item.name.replace("_", "-")
            kind = float if item.type is float else int
            group.add_argument(
                flag, dest=item.name, type=kind, metavar="X" if kind is float else "N", help=item.metadata["help"]
            )
    return parser


def given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Return the values of those arguments that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def stage_of(args: argparse.Namespace) -> str:
    """Return the stage that the arguments ask for."""
    return args.stage or ("pretrain" if args.init_from is None else "finetune")


def folder(args: argparse.Namespace) -> RunDir:
    """Return the folder to train in."""
    return RunDir(f"runs/{stage_of(args)}" if args.out is None else args.out)


def source_folder(args: argparse.Namespace) -> RunDir:
    """Return the run that a fine-tune starts from."""
    return RunDir("runs/pretrain" if args.init_from is None else args.init_from)


def check(args: argparse.Namespace, world: World) -> None:
    """Raise UserError for arguments that cannot work, before any slow step; gather the texts in ``args.data``."""
    args.data = [*args.texts, *(args.data or [])] or None
    check_threads(args.threads)
    if args.encoding is not None:
        checked_encoding(args.encoding)
        if args.data is None and args.validation is None:
            raise UserError("--encoding is for files; name them with --data, or leave it out")
    if args.plan and (args.resume or world.is_launched):
        raise UserError("--plan is for a training that has not begun, by one process; leave out --resume and torchrun")
    if args.validation is not None and (args.validation_share is not None or args.validation_split):
        raise UserError("--validation names a text of its own; leave out --validation-share and --validation-split")
    if args.sample_interval is not None and args.sample_interval < 0:
        raise UserError(f"--sample-interval is {args.sample_interval}; it must be 0 or more")
    if args.log:
        require_tensorboard()
    if args.score_characters < 1:
        raise UserError(f"--score-characters is {args.score_characters}; it must be at least 1")
    if args.resume:
        _check_resume(args)
        return
    if stage_of(args) == "finetune":
        _check_finetune(args)
    elif args.freeze or args.init_from:
        flag = "--freeze" if args.freeze else "--init-from"
        raise UserError(f"{flag} is for fine-tuning; add --stage finetune")
    if world.is_main and not world.restarts and not args.plan:
        folder(args).check_free(args.overwrite)


def _check_resume(args: argparse.Namespace) -> None:
    names = ["preset", "init_from", "freeze", "validation", "validation_share", "validation_split"]
    if fixed := [_flag(name) for name in given(args, [*FIXED_FIELDS, *names])]:
        raise UserError(f"{fixed[0]} is fixed once a run has begun; leave it out with --resume")
    if args.overwrite:
        raise UserError("--resume continues a run, --overwrite replaces it; choose one")
    began_as = folder(args).read_config().get("stage")
    if args.stage not in (None, began_as):
        raise UserError(f"the run in {folder(args).path} is of stage {began_as}; leave out --stage {args.stage}")


def _check_finetune(args: argparse.Namespace) -> None:
    if fixed := [_flag(name) for name in given(args, MODEL_FIELDS) if name not in DROPOUTS]:
        raise UserError(f"{fixed[0]} is the checkpoint's in a fine-tune; leave it out, or pretrain with it")
    run, source = folder(args), source_folder(args)
    if not source.exists:
        raise UserError(
            f"there is no run in {source.path} to fine-tune; "
            "`charformer-train` makes runs/pretrain, --init-from names another"
        )
    if run.path.exists() and source.path.samefile(run.path):
        raise UserError("--out and --init-from are the same folder; a fine-tune needs one of its own")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

"""charformer-sample: continue a prompt with a trained model."""

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from charformer.commands.common import Parser, choose_run, execute
from charformer.data.vocab import Vocab, describe
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling import sampler
from charformer.sampling.engine import Ids
from charformer.ui.console import PlainConsole, printable

if TYPE_CHECKING:
    from charformer.sampling.onnx_engine import OnnxEngine

BETWEEN_SAMPLES = "\n---\n"
RUNS_OWN = "\0"  # what --onnx means without a file; no file has that name
MOST_THREADS = 1024
MOST_SAMPLES = 1_000_000

EXAMPLES = """\
examples:
  charformer-sample                                     500 characters from runs/finetune, else runs/pretrain
  charformer-sample --prompt "ROMEO:" --temperature 0.8
  charformer-sample --prompt-file - < opening.txt       the prompt from standard input
  charformer-sample --num-samples 3 --seed 7            three texts, the same ones every time
  charformer-sample --onnx                              the fast way; exports the run first where needed
  charformer-sample --onnx model.onnx                   from a file alone
"""


class Source(NamedTuple):
    """What there is to sample from, and the steps that continue a prompt."""

    named: dict[str, Any]
    vocab: Vocab
    continued: Callable[[Ids, sampler.SamplingConfig], Iterator[Ids]]


def main(argv: list[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    return execute(_parser(), argv, _run)


def _parser() -> Parser:
    parser = Parser("charformer-sample", "Continue a prompt with a trained model, as it is made.", EXAMPLES)
    parser.add_argument(
        "--run", metavar="DIR", help="the run to sample from (default: runs/finetune if there, else runs/pretrain)"
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what to continue (default: a newline)")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file, or from stdin: -")
    parser.add_argument(
        "--on-unknown",
        choices=("error", "skip"),
        default="error",
        help="what to do with characters of the prompt that the vocabulary lacks (default: error)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=500, metavar="N", help="how many characters to make (default: 500)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy (default: 1.0)")
    parser.add_argument("--top-k", type=int, metavar="N", help="pick among the N likeliest characters (default: off)")
    parser.add_argument(
        "--top-p", type=float, metavar="X", help="pick among the likeliest that together have X (default: off)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the noise that picks (default: a new one each time)")
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="texts to make, with --- between them (default: 1)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="processor threads (default: PyTorch's choice; with --onnx 1 in 8 and 4 bits, else 2)",
    )
    pytorch = parser.add_argument_group("with PyTorch")
    pytorch.add_argument("--device", choices=("auto", "cpu", "cuda"), help="auto takes a GPU if there (default: auto)")
    pytorch.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32)")
    fast = parser.add_argument_group("with onnxruntime")
    fast.add_argument(
        "--onnx",
        nargs="?",
        const=RUNS_OWN,
        metavar="FILE",
        help="sample from this file, or from the run's model.onnx, which is exported first if missing or out of date",
    )
    fast.add_argument(
        "--provider", choices=("auto", "cpu", "cuda"), help="auto takes a GPU for a 16-bit file (default: auto)"
    )
    fast.add_argument(
        "--no-speculative",
        action="store_true",
        help="run the model for every character, instead of checking several guesses in one run (in 8 and 4 bits the "
        "text of a seed is then another one)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the text")
    return parser


def _run(args: argparse.Namespace) -> int:
    if not 1 <= args.num_samples <= MOST_SAMPLES:
        raise UserError(f"--num-samples is {args.num_samples}; it must be from 1 to {MOST_SAMPLES:,}")
    if args.threads is not None and not 1 <= args.threads <= MOST_THREADS:
        raise UserError(f"--threads is {args.threads}; it must be from 1 to {MOST_THREADS}")
    if args.onnx == "":
        raise UserError("--onnx was given an empty name; leave it out to take the run's model.onnx")
    _check_group(args)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    config = sampler.SamplingConfig(args.max_new_tokens, args.temperature, args.top_k, args.top_p, seed)
    prompt = args.prompt or "" if args.prompt_file is None else _read_prompt(args.prompt_file)
    source = _pytorch(args) if args.onnx is None else _onnx(args)
    vocab = source.vocab
    if unknown := vocab.unknown(prompt):
        if args.on_unknown == "error":
            raise UserError(f"the vocabulary lacks {describe(unknown)}; leave them out, or pass --on-unknown skip")
        print(f"skipping {describe(unknown)}", file=sys.stderr)
        prompt = "".join(character for character in prompt if character in vocab)
    ids = sampler.encode_prompt(vocab, prompt)
    if args.seed is None:
        print(f"seed {seed}", file=sys.stderr)

    made: list[Ids] = []
    opening = vocab.decode(ids)
    if not args.json:
        _write(opening)
    for step in source.continued(ids, config):
        if args.json or args.num_samples > 1:  # a single text may be longer than memory
            made.append(step)
        if not args.json:
            _write(vocab.decode(step[:1]))
    texts = [vocab.decode(row) for row in _rows(made, args.num_samples)]
    if args.json:
        print(json.dumps({**source.named, "prompt": opening, "seed": seed, "samples": texts}))
        return 0
    for text in texts[1:]:
        _write(BETWEEN_SAMPLES + opening + text)
    if sys.stdout.isatty():
        _write("\n")
    return 0


def _check_group(args: argparse.Namespace) -> None:
    """Raise UserError for a flag of the engine that is not asked for."""
    if args.onnx is None:
        strangers = {"--provider": args.provider, "--no-speculative": args.no_speculative}
        reason = "needs --onnx"
    else:
        strangers = {"--device": args.device, "--dtype": args.dtype}
        reason = "does not go with --onnx"
        if args.onnx != RUNS_OWN and args.run:
            strangers, reason = {"--run": args.run}, "does not go with --onnx FILE, which is enough; leave one out"
    for flag, value in strangers.items():
        if value:
            raise UserError(f"{flag} {reason}")


def _pytorch(args: argparse.Namespace) -> Source:
    run = choose_run(args.run)

    # Imported once the arguments are known to be good: torch takes seconds.
    import torch

    from charformer.device import choose_device
    from charformer.runs.checkpoint import load_model
    from charformer.sampling.torch_engine import TorchEngine

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model, vocab = load_model(run)
    ngram = run.read_ngram(model.config)
    engine = TorchEngine(model, choose_device(args.device or "auto"), getattr(torch, args.dtype or "float32"), ngram)
    named = {"run": str(run.path)}
    return Source(named, vocab, lambda ids, config: sampler.generate(engine, ids, args.num_samples, config))


def _onnx(args: argparse.Namespace) -> Source:
    from charformer.sampling.speculation import speculate

    run = choose_run(args.run) if args.onnx == RUNS_OWN else None
    path = Path(args.onnx) if run is None else run.onnx
    engine = _engine(path, args) if run is None else _up_to_date(run, args)
    named = {"run": str(run.path) if run else None, "onnx": str(path)}
    vocab, draft = engine.description.vocab, engine.description.draft
    if draft is None or args.no_speculative or args.num_samples > 1:
        return Source(named, vocab, lambda ids, config: sampler.generate(engine, ids, args.num_samples, config))
    return Source(named, vocab, lambda ids, config: speculate(engine, draft, ids, config))


def _engine(path: Path, args: argparse.Namespace) -> "OnnxEngine":
    from charformer.sampling.onnx_engine import OnnxEngine

    return OnnxEngine(path, args.threads, args.provider or "auto")


def _up_to_date(run: RunDir, args: argparse.Namespace) -> "OnnxEngine":
    """An engine on the run's model.onnx, exported first unless it is there and of the weights that are there."""
    from charformer.commands.export import DEFAULT_PRECISION, export_run
    from charformer.sampling.onnx_format import OutdatedError

    weights = run.weights_sha256()
    precision, portable = "fp16" if args.provider == "cuda" else DEFAULT_PRECISION, False
    reason = "there is no such file yet"
    if run.onnx.exists():
        try:
            engine = _engine(run.onnx, args)
            found = engine.description
            if found.weights_sha256 == weights:
                return engine
            precision, portable = found.precision, found.portable
            reason = "the run has other weights by now"
        except OutdatedError as error:
            precision, portable = error.precision, error.portable
            reason = "an earlier version wrote it"
    notices = PlainConsole(stderr=True)
    notices.print(f"exporting {run.onnx}: {reason}")
    export_run(run, run.onnx, precision, portable, data=None, console=notices)
    return _engine(run.onnx, args)


def _read_prompt(path: str) -> str:
    if path == "-" and sys.stdin is None:
        raise UserError("--prompt-file - reads standard input, and there is none")
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt from {path}: {error}") from error


def _rows(made: list[Ids], samples: int) -> Iterator[Ids]:
    """The steps, each (samples,), as one array of ids a sample."""
    return iter(np.stack(made, axis=1) if made else np.zeros((samples, 0), np.int64))


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

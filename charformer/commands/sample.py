"""charformer-sample: continue a prompt with a trained model."""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from charformer import sampling
from charformer.commands.common import Parser, execute
from charformer.display import printable
from charformer.errors import UserError
from charformer.rundir import RunDir
from charformer.vocab import describe

DEFAULT_RUNS = ("runs/finetune", "runs/pretrain")
BETWEEN_SAMPLES = "\n---\n"

EXAMPLES = """\
examples:
  charformer-sample                                     500 characters from runs/finetune, else runs/pretrain
  charformer-sample --prompt "ROMEO:" --temperature 0.8
  charformer-sample --prompt-file - < opening.txt       the prompt from standard input
  charformer-sample --num-samples 3 --seed 7            three texts, the same ones every time
"""


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
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there (default: auto)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: float32)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the text")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.num_samples < 1:
        raise UserError(f"--num-samples is {args.num_samples}; it must be 1 or more")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads is {args.threads}; it must be 1 or more")
    seed = secrets.randbits(32) if args.seed is None else args.seed
    config = sampling.SamplingConfig(args.max_new_tokens, args.temperature, args.top_k, args.top_p, seed)
    run = _choose_run(args.run)
    prompt = args.prompt or "" if args.prompt_file is None else _read_prompt(args.prompt_file)

    # Imported once the arguments are known to be good: torch takes seconds.
    import torch

    from charformer.checkpoint import load_model
    from charformer.device import choose_device
    from charformer.torch_engine import TorchEngine

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model, vocab = load_model(run)
    if unknown := vocab.unknown(prompt):
        if args.on_unknown == "error":
            raise UserError(f"the vocabulary lacks {describe(unknown)}; leave them out, or pass --on-unknown skip")
        print(f"skipping {describe(unknown)}", file=sys.stderr)
        prompt = "".join(character for character in prompt if character in vocab)
    ids = sampling.encode_prompt(vocab, prompt)
    engine = TorchEngine(model, choose_device(args.device), getattr(torch, args.dtype))
    if args.seed is None:
        print(f"seed {seed}", file=sys.stderr)

    made: list[sampling.Ids] = []
    opening = vocab.decode(ids)
    if not args.json:
        _write(opening)
    for step in sampling.generate(engine, ids, args.num_samples, config):
        if args.json or args.num_samples > 1:  # a single text may be longer than memory
            made.append(step)
        if not args.json:
            _write(vocab.decode(step[:1]))
    texts = [vocab.decode(row) for row in _rows(made, args.num_samples)]
    if args.json:
        print(json.dumps({"run": str(run.path), "prompt": opening, "seed": seed, "samples": texts}))
        return 0
    for text in texts[1:]:
        _write(BETWEEN_SAMPLES + opening + text)
    if sys.stdout.isatty():
        _write("\n")
    return 0


def _choose_run(given: str | None) -> RunDir:
    if given is not None:
        return RunDir(given)
    for path in DEFAULT_RUNS:
        if RunDir(path).weights.is_file():
            return RunDir(path)
    raise UserError(
        "there is no run in runs/finetune or runs/pretrain; `charformer-train` makes one, --run names another"
    )


def _read_prompt(path: str) -> str:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt from {path}: {error}") from error


def _rows(made: list[sampling.Ids], samples: int) -> Iterator[sampling.Ids]:
    """The steps, each (samples,), as one array of ids a sample."""
    return iter(np.stack(made, axis=1) if made else np.zeros((samples, 0), np.int64))


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

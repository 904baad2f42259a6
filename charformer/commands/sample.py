"""charformer-sample: continue a prompt with a trained model."""

import argparse
import io
import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from charformer import api
from charformer.commands.common import Parser, choose_run, execute, logs_to, nonempty
from charformer.config import DEVICES
from charformer.data.vocab import Vocab, describe, universal_newlines
from charformer.errors import UserError
from charformer.runs.folder import WEIGHTS
from charformer.runs.listing import RUNS, find_runs
from charformer.sampling.sampler import encode_prompt
from charformer.ui.console import PlainConsole, age, printable

BETWEEN_SAMPLES = "\n---\n"
RUNS_OWN = "\0"  # the value of --onnx without a file; no file can have this name
MAX_SAMPLES = 1_000_000
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed", "num_samples", "no_speculative")

EXAMPLES = """\
examples:
  charformer-sample                                     500 characters from the newest run under runs/
  charformer-sample --prompt "ROMEO:" --temperature 0.8
  charformer-sample --prompt $'ROMEO:\\n' --stop $'\\n\\n'   one speech
  charformer-sample --interactive                       type, read on, type again
  charformer-sample --score letter.txt                  how well the model predicts a text
  charformer-sample --num-samples 3 --seed 7            three texts, the same ones every time
  charformer-sample --onnx                              the fast way; exports the run first where needed
  charformer-sample --onnx model.onnx                   from a file alone
"""


def main(argv: list[str] | None = None) -> int:
    return execute(build_parser(), argv, _run)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("charformer-sample", "Continue a prompt with a trained model, as it is made.", EXAMPLES)
    parser.add_argument(
        "--run",
        type=nonempty,
        metavar="DIR",
        help="the run to sample from (default: the one under runs/ that was written last)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="best",
        help="weights that were best on validation, or that the training saved last (default: best)",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what to continue (default: a newline)")
    prompt.add_argument(
        "--prompt-file", type=nonempty, metavar="FILE", help="read the prompt from a UTF-8 file, or from stdin: -"
    )
    prompt.add_argument(
        "--prompts", type=nonempty, metavar="FILE", help="read a prompt from each line; print a JSON document for each"
    )
    prompt.add_argument(
        "--interactive",
        action="store_true",
        help="ask for one prompt after another; an empty line continues the text",
    )
    prompt.add_argument(
        "--score", type=nonempty, metavar="FILE", help="sample nothing, but score each character of a text"
    )
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
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="pick among the N likeliest characters (default: 0, off)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="pick among the likeliest that together have X (default: 1, off)",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; several --stop end at the first of them"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the noise that picks characters (default: a new one each time)"
    )
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
    pytorch.add_argument(
        "--device", choices=DEVICES, help="auto uses an NVIDIA GPU if there is one; mps is Apple's GPU (default: auto)"
    )
    pytorch.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of the weights (default: float32)")
    fast = parser.add_argument_group("with onnxruntime")
    fast.add_argument(
        "--onnx",
        type=nonempty,
        nargs="?",
        const=RUNS_OWN,
        metavar="FILE",
        help="sample from this file, or from the run's model.onnx, which is exported first if missing or out of date",
    )
    fast.add_argument(
        "--provider", choices=("auto", "cpu", "cuda"), help="auto uses a GPU for a 16-bit file (default: auto)"
    )
    fast.add_argument(
        "--no-speculative",
        action="store_true",
        help="run the model once for each character instead of checking several proposals in one run (in 8 and 4 bits "
        "a seed then gives another text)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the text")
    return parser


def _run(args: argparse.Namespace) -> int:
    if not 1 <= args.num_samples <= MAX_SAMPLES:
        raise UserError(f"`num_samples` is {args.num_samples}; it must be from 1 to {MAX_SAMPLES:,}")
    if args.interactive and (args.json or args.num_samples > 1):
        raise UserError("`interactive` makes one text at a time; leave out --json and --num-samples")
    if args.score is not None:
        _check_score(args)
    _check_group(args)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    options = api.SamplingOptions(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=seed,
        stop=args.stop or (),
    )
    api.check(options)  # before PyTorch is imported, which takes seconds
    text = _text(args)
    notices = PlainConsole(stderr=True)
    with logs_to(notices):
        model = _load(args)
    texts = _known(model.vocab, [text] if args.prompts is None else _split(text), args)
    notices.print(_source(model, args, None if args.score else seed))
    if args.score is not None:
        return _score(model, texts[0], args)
    if args.interactive:
        return _converse(model, options, args)
    if args.prompts is not None:
        for prompt in texts:
            samples = model.generate_batch(prompt, args.num_samples, **options)
            _write(_document(model, prompt, seed, samples, args) + "\n")
        return 0
    return _sample(model, texts[0], options, args)


def _check_score(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that decides how to sample."""
    defaults = build_parser()
    for name in SAMPLING:
        if getattr(args, name) != defaults.get_default(name):
            raise UserError(f"`{name}` is for sampling, and `score` samples nothing; leave one out")


def _check_group(args: argparse.Namespace) -> None:
    """Raise UserError for a flag of the engine that is not used."""
    if args.onnx is None:
        strangers = {"--provider": args.provider, "--no-speculative": args.no_speculative}
        reason = "needs --onnx"
    else:
        strangers = {"--device": args.device, "--dtype": args.dtype}
        reason = "does not go with --onnx"
        if args.onnx != RUNS_OWN and (args.run or args.weights == "last"):
            strangers = {"--run": args.run, "--weights": args.weights == "last"}
            reason = "does not go with --onnx FILE, which is enough; leave one out"
    for flag, value in strangers.items():
        if value:
            raise UserError(f"{flag} {reason}")


def _text(args: argparse.Namespace) -> str:
    """Return the prompt, the prompts or the text to score."""
    path = next((path for path in (args.prompt_file, args.prompts, args.score) if path is not None), None)
    if sys.stdin is None and (args.interactive or path == "-"):
        raise UserError(f"{'--interactive' if args.interactive else '-'} reads standard input, and there is none")
    if path is None:
        return universal_newlines(args.prompt or "")
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return universal_newlines(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        what = "the text" if args.score else "the prompt"
        raise UserError(f"cannot read {what} from {path}: {error}") from error


def _split(text: str) -> list[str]:
    """Return the lines of ``text``, without their newlines."""
    return text.removesuffix("\n").split("\n") if text else []


def _load(args: argparse.Namespace) -> api.Model:
    if args.onnx is None and find_spec("torch") is None:
        raise UserError("PyTorch is not installed; --onnx samples without it")
    path = args.onnx if args.onnx not in (None, RUNS_OWN) else choose_run(args.run).path
    return api.load(
        path,
        engine="torch" if args.onnx is None else "onnx",
        weights=args.weights,
        device=args.device or "auto",
        dtype=args.dtype or "float32",
        provider=args.provider or "auto",
        threads=args.threads,
        speculative=not args.no_speculative,
    )


def _source(model: api.Model, args: argparse.Namespace, seed: int | None) -> str:
    """Return a description of the model sampled from: ``runs/finetune (3 hours old), int8, seed 7``."""
    file = model.path if model.run is None else model.run.state if model.weights == "last" else model.run.weights
    about = age(time.time() - file.stat().st_mtime)
    if model.run is not None and args.run is None and (count := len(find_runs(RUNS))) > 1:
        about += f", the newest of {count} runs"
    facts = [f"{model.path} ({about})", *(["the last weights"] if model.weights == "last" else []), model.precision]
    return ", ".join(facts if seed is None else [*facts, f"seed {seed}"])


def _known(vocab: Vocab, texts: list[str], args: argparse.Namespace) -> list[str]:
    """Return the texts without unknown characters if --on-unknown is skip; otherwise raise UserError for them."""
    unknown = vocab.unknown("".join(texts))
    if not unknown:
        return texts
    if args.on_unknown == "error":
        hint = (
            ", and a newline is written $'...\\n'" if "\\" in unknown and any("\\n" in text for text in texts) else ""
        )
        raise UserError(f"the vocabulary lacks {describe(unknown)}; leave them out, or pass --on-unknown skip{hint}")
    print(f"skipping {describe(unknown)}", file=sys.stderr)
    return ["".join(character for character in text if character in vocab) for text in texts]


def _sample(model: api.Model, prompt: str, options: api.SamplingOptions, args: argparse.Namespace) -> int:
    """Write the sampled texts, the first one as it is made; return the exit code."""
    opening = _opening(model, prompt)
    if not args.json:
        _write(opening)
    made: list[tuple[str, ...]] = []
    for pieces in model.stream_batch(prompt, args.num_samples, **options):
        if args.json or args.num_samples > 1:  # a single text may be longer than memory
            made.append(pieces)
        if not args.json:
            _write(pieces[0])
    texts = ["".join(pieces) for pieces in zip(*made, strict=True)] or [""] * args.num_samples
    if args.json:
        print(_document(model, prompt, options["seed"], texts, args))
        return 0
    for text in texts[1:]:
        _write(BETWEEN_SAMPLES + opening + text)
    if sys.stdout.isatty():
        _write("\n")
    return 0


def _converse(model: api.Model, options: api.SamplingOptions, args: argparse.Namespace) -> int:
    """Ask for prompts and write a continuation of each until the input ends; return the exit code."""
    text, seed = "", options["seed"] or 0
    for line in _lines():
        try:
            [added] = _known(model.vocab, [line], args)
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        text = added or text  # an empty line continues the text
        _write(added)
        options["seed"] = seed % 2**64
        seed += 1  # else each answer would use the same noise
        with suppress(KeyboardInterrupt):  # ends only the answer
            for piece in model.stream(text, **options):
                text += piece
                _write(piece)
        _write("\n")
    return 0


def _lines() -> Iterator[str]:
    """Yield the lines that the user types, or that come from a pipe."""
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):  # a byte that is no text must not end the conversation
        sys.stdin.reconfigure(encoding=None if is_terminal else "utf-8-sig", errors="replace")
    if not is_terminal:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  input() then has line editing
    with suppress(EOFError):
        while True:
            yield input("> ")


def _score(model: api.Model, text: str, args: argparse.Namespace) -> int:
    """Print the losses of the characters of ``text``; return the exit code."""
    if not text:
        raise UserError(f"{args.score} is empty; there is nothing to score")
    found = model.score(text)
    means = {"nats": found.nats, "bits": found.bits, "perplexity": found.perplexity}
    if args.json:
        values = means | {"characters": len(found.per_character), "per_character": found.per_character.tolist()}
        print(json.dumps(_named(model, args) | values))
        return 0
    print("".join(f"{name:>12}  {value:.4f}\n" for name, value in means.items()), end="")
    print(f"  characters  {len(found.per_character):,}")
    return 0


def _named(model: api.Model, args: argparse.Namespace) -> dict[str, Any]:
    run = {"run": str(model.run.path) if model.run else None}
    return run if args.onnx is None else run | {"onnx": str(model.run.onnx if model.run else model.path)}


def _document(model: api.Model, prompt: str, seed: int | None, texts: list[str], args: argparse.Namespace) -> str:
    return json.dumps(_named(model, args) | {"prompt": _opening(model, prompt), "seed": seed, "samples": texts})


def _opening(model: api.Model, prompt: str) -> str:
    """Return what the samples continue, which is a newline for an empty prompt."""
    return model.vocab.decode(encode_prompt(model.vocab, prompt))


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

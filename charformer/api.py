"""charformer as a library: load a model, and generate, score and export with it.

    import charformer

    model = charformer.load("runs/novel")                # or a .onnx file
    print(model.generate("ROMEO:", max_new_tokens=200, temperature=0.8, seed=1))
    print(model.score("some text").bits)                 # bits per character

The library prints nothing; it sends messages for the user to the logger ``charformer``.
Several threads may use one model.
"""

import importlib.util
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, Unpack

import numpy as np

from charformer.config import DEVICES, Device, ModelConfig, check_threads
from charformer.data.vocab import Vocab, universal_newlines
from charformer.errors import UserError
from charformer.runs.folder import WEIGHTS, RunDir
from charformer.sampling.engine import Engine, Ids
from charformer.sampling.sampler import SamplingConfig, encode_prompt, generate
from charformer.sampling.scoring import Score, score
from charformer.sampling.stopping import StopText

if TYPE_CHECKING:
    from charformer.sampling.cuda_sampler import CudaSampler
    from charformer.sampling.onnx_engine import OnnxEngine
    from charformer.sampling.speculation import Proposer
    from export.exporter import Export

__all__ = ["Model", "SamplingOptions", "Score", "load"]

DEFAULT_PRECISION = "int8"

log = logging.getLogger("charformer")
log.addHandler(logging.NullHandler())  # else Python prints warnings where no logging is set up


class SamplingOptions(TypedDict):
    """The options that decide how characters are picked, and how many.

    Attributes:
        max_new_tokens: the most characters to generate (default: 500).
        temperature: 0 is greedy (default: 1.0).
        top_k: pick among this many of the likeliest characters; None or 0 picks among all (default).
        top_p: pick among the likeliest that together have this probability; None or 1 picks among all (default).
        seed: the same seed gives the same text; None takes a new one (default).
        stop: one or more texts that end a sample; they are not part of it (default: none). Their newlines, and a
            prompt's, are read as \\n.
    """

    max_new_tokens: NotRequired[int]
    temperature: NotRequired[float]
    top_k: NotRequired[int | None]
    top_p: NotRequired[float | None]
    seed: NotRequired[int | None]
    stop: NotRequired[str | Sequence[str]]


def check(options: SamplingOptions) -> tuple[SamplingConfig, list[str]]:
    """Return how to pick characters, and the texts to stop at. Raises UserError for options that make no sense."""
    stop = options.get("stop", ())
    stops = [universal_newlines(text) for text in ([stop] if isinstance(stop, str) else stop)]
    if "" in stops:
        raise UserError("`stop` is an empty text, which is everywhere; leave it out")
    given: dict[str, Any] = {name: value for name, value in options.items() if name != "stop" and value is not None}
    return SamplingConfig(**({"seed": secrets.randbits(32)} | given)), stops


@dataclass(frozen=True)
class Model:
    """A trained model, from a run's folder or a .onnx file; ``load`` creates one.

    Attributes:
        path: the folder or the file.
        run: the folder of the run; None for a file alone.
        weights: ``best`` or ``last``.
        precision: ``float32`` or ``bfloat16`` on PyTorch; ``fp32``, ``fp16``, ``int8`` or ``int4`` on onnxruntime.
        config: the shape of the model.
        vocab: its characters.
        new_engine: creates an engine with a context of its own.
        draft: the table that proposes characters in speculative sampling.
        sampler: generates texts on a GPU, instead of an engine.
    """

    path: Path
    run: RunDir | None
    weights: str
    precision: str
    config: ModelConfig
    vocab: Vocab
    new_engine: Callable[[], Engine]
    draft: "Proposer | None" = None
    sampler: "CudaSampler | None" = None

    def generate(self, prompt: str = "", **options: Unpack[SamplingOptions]) -> str:
        """Return a text that continues ``prompt``, without the prompt; an empty prompt means a newline.

        Raises UserError for options that make no sense, and for characters that the model does not know.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str = "", **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """Return an iterator over the text of ``generate`` in pieces: mostly one character each, and never empty."""
        return (pieces[0] for pieces in self.stream_batch(prompt, 1, **options) if pieces[0])

    def generate_batch(self, prompt: str, num_samples: int, **options: Unpack[SamplingOptions]) -> list[str]:
        """Return several texts that continue ``prompt``, generated together."""
        texts = [""] * num_samples
        for pieces in self.stream_batch(prompt, num_samples, **options):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts

    def stream_batch(
        self, prompt: str, num_samples: int, **options: Unpack[SamplingOptions]
    ) -> Iterator[tuple[str, ...]]:
        """Return an iterator over the pieces of several texts: (num_samples,) at each step, some perhaps empty."""
        if num_samples < 1:
            raise UserError(f"`num_samples` is {num_samples}; it must be 1 or more")
        config, stops = check(options)
        steps = self._steps(encode_prompt(self.vocab, prompt), num_samples, config)
        return self._pieces(steps, [StopText(stops) for _ in range(num_samples)])

    def _steps(self, ids: Ids, num_samples: int, config: SamplingConfig) -> Iterator[Ids]:
        """Return an iterator over the steps: the next ids of all samples, (num_samples,)."""
        if self.sampler is not None:
            return self.sampler.generate(ids, num_samples, config)
        engine = self.new_engine()
        if self.draft is None or num_samples > 1:
            return generate(engine, ids, num_samples, config)
        from charformer.sampling.onnx_engine import OnnxEngine
        from charformer.sampling.speculation import speculate

        assert isinstance(engine, OnnxEngine), "others cannot forget"
        return speculate(engine, self.draft, ids, config)

    def _pieces(self, steps: Iterable[Ids], texts: list[StopText]) -> Iterator[tuple[str, ...]]:
        for ids in steps:
            yield tuple(text.push(character) for text, character in zip(texts, self.vocab.decode(ids), strict=True))
            if all(text.is_reached for text in texts):
                return
        yield tuple(text.finish() for text in texts)

    def score(self, text: str, prompt: str = "") -> Score:
        """Return the loss of each character of ``text``, given ``prompt`` and the characters before it.

        ``Score`` has the mean in nats and in bits, the perplexity, and the nats of each character. Raises UserError for
        characters that the model does not know.
        """
        before, ids = encode_prompt(self.vocab, prompt), self.vocab.encode(universal_newlines(text))
        return score(self.new_engine(), np.concatenate([before, ids]), len(before), self.config.block_size)

    def export(
        self, out: str | Path, precision: str = DEFAULT_PRECISION, portable: bool = False, data: str | None = None
    ) -> "Export":
        """Write the model to a .onnx file, compare it with its checkpoint, and return the differences.

        Args:
            out: the path to write. An earlier export is replaced once the new one has passed the check; another
                program's file never is.
            precision: the precision of the weights: ``fp32``, ``fp16``, ``int8`` or ``int4``.
            portable: use only standard operators, for other runtimes; they are slower on onnxruntime.
            data: the text, a file or a name, to check the exported model on and, without an n-gram prior, to make a
                draft from; by default the text that the run was trained on.

        Raises:
            UserError: when the model came from a .onnx file, or the new file cannot be written. In fp32 also when a
                logit differs from the checkpoint's by more than 1e-4; in the other precisions only when logits are not
                finite, and a loss on the text that is higher by more than 0.01 nats a character logs a warning.
        """
        if self.run is None:
            raise UserError(f"{self.path} is an export already; load the folder of its run to export it again")
        return _export(self.run, Path(out), precision, portable, data, self.weights)


def load(
    path: str | Path,
    *,
    engine: Literal["auto", "torch", "onnx"] = "auto",
    weights: Literal["best", "last"] = "best",
    device: Device = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    provider: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    speculative: bool = True,
) -> Model:
    """Return the model in a run's folder or in a .onnx file.

    Args:
        path: the folder or the file.
        engine: ``torch``; ``onnx``, which uses a run's model.onnx and exports it first if it is missing or out of
            date; or ``auto``, which means ``onnx`` for a file, and also for a folder if PyTorch is not installed.
        weights: the weights that were best on validation, or those that the training saved last.
        device: the device of PyTorch; ``auto`` takes an NVIDIA GPU if there is one, and ``mps`` is Apple's GPU.
        dtype: the dtype of the weights on PyTorch.
        provider: the provider of onnxruntime; ``auto`` takes a GPU for a 16-bit file.
        threads: the number of CPU threads; PyTorch's applies to the whole process. None takes the engine's default.
        speculative: let onnxruntime check several proposals in one run when it generates a single text; in 8 and 4
            bits a seed gives a different text without this option.

    Raises:
        UserError: when there is no model, its files are damaged, an engine or a device is not available, or an
            option asks for what the engine does not have, such as bfloat16 on onnxruntime.
    """
    if path == "":
        raise UserError("`path` is an empty name")
    path = Path(path)
    _require("engine", engine, ("auto", "torch", "onnx"))
    _require("weights", weights, WEIGHTS)
    _require("device", device, DEVICES)
    _require("dtype", dtype, ("float32", "bfloat16"))
    _require("provider", provider, ("auto", "cpu", "cuda"))
    check_threads(threads)
    is_file = path.suffix == ".onnx" or path.is_file()
    if is_file and (engine == "torch" or weights == "last"):
        raise UserError(f"{path} is one file for onnxruntime; `engine` torch and `weights` last are for a run")
    has_torch = importlib.util.find_spec("torch") is not None
    if is_file or engine == "onnx" or (engine == "auto" and not has_torch):
        if device not in ("auto", "cpu") or dtype != "float32":
            raise UserError("`device` and `dtype` are for PyTorch; onnxruntime has `provider` and the file's precision")
        run = None if is_file else RunDir(path)
        found = _open(path, threads, provider) if run is None else _up_to_date(run, weights, threads, provider)
        return _onnx_model(path, run, found, weights, speculative)
    if not has_torch:
        raise UserError("`engine` torch needs PyTorch, which is not installed; `engine` onnx does without")
    if provider == "cuda":
        raise UserError("`provider` is for onnxruntime; PyTorch takes `device`")
    return _torch_model(path, weights, device, dtype, threads)


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"`{name}` is {value!r}; it must be one of {', '.join(allowed)}")


def _torch_model(path: Path, weights: str, device: str, dtype: str, threads: int | None) -> Model:
    run = RunDir(path)
    run.read_config()  # report a missing run before importing PyTorch, which takes seconds
    import torch

    from charformer.device import choose_device
    from charformer.runs.checkpoint import load_model
    from charformer.sampling.cuda_sampler import CudaSampler
    from charformer.sampling.torch_engine import TorchEngine

    if threads is not None:
        torch.set_num_threads(threads)
    model, vocab = load_model(run, weights)
    ngram = run.read_ngram(model.config)
    place, kind = choose_device(device), getattr(torch, dtype)
    sampler = CudaSampler(model, place, kind) if place.type == "cuda" and ngram is None else None
    return Model(
        path,
        run,
        weights,
        dtype,
        model.config,
        vocab,
        new_engine=lambda: TorchEngine(model, place, kind, ngram),
        sampler=sampler,
    )


def _onnx_model(path: Path, run: RunDir | None, engine: "OnnxEngine", weights: str, speculative: bool) -> Model:
    found = engine.description
    draft = found.proposer if speculative else None
    return Model(path, run, weights, found.precision, found.config, found.vocab, engine.sibling, draft)


def _open(path: Path, threads: int | None, provider: str) -> "OnnxEngine":
    from charformer.sampling.onnx_engine import OnnxEngine

    return OnnxEngine(path, threads, provider)


def _up_to_date(run: RunDir, weights: str, threads: int | None, provider: str) -> "OnnxEngine":
    """Return an engine on the run's model.onnx; export it first unless it exists and has these weights."""
    from charformer.sampling.onnx_engine import require_cuda
    from charformer.sampling.onnx_format import OutdatedError

    sha256 = run.weights_sha256(weights)
    precision, portable = "fp16" if provider == "cuda" else DEFAULT_PRECISION, False
    reason = "there is no such file yet"
    if run.onnx.exists():
        try:
            engine = _open(run.onnx, threads, provider)
            found = engine.description
            if found.weights_sha256 == sha256:
                return engine
            precision, portable = found.precision, found.portable
            reason = "the run has other weights by now" if weights == "best" else "it is not of the last weights"
        except OutdatedError as error:
            precision, portable = error.precision, error.portable
            reason = "an earlier version wrote it"
    if provider == "cuda":
        require_cuda()  # else 16 bits would be left for the CPU
    log.info("exporting %s: %s", run.onnx, reason)
    _export(run, run.onnx, precision, portable, None, weights)
    return _open(run.onnx, threads, provider)


def _export(run: RunDir, out: Path, precision: str, portable: bool, data: str | None, weights: str) -> "Export":
    from charformer.sampling.onnx_format import PRECISIONS
    from export.exporter import export, find_text  # importing onnx takes a while, and sampling rarely needs it

    _require("precision", precision, PRECISIONS)
    done = export(run, out, precision, portable, find_text(run, data), weights)
    size, kind = f"{done.bytes / 1e6:,.2f} MB", f"{precision}{', portable' if portable else ''}"
    log.info("%s: %s, %s; a logit is off by %.1e at most", out, kind, size, done.comparison.max_logit_error)
    return done

"""An engine that computes next-character logits with onnxruntime, from a .onnx file of charformer-export."""

import copy
import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it stores a device id and a log of events
import onnxruntime as ort

from charformer.config import ModelConfig
from charformer.data.ngram import Rows
from charformer.errors import UserError
from charformer.model.rotary import rotate_back
from charformer.sampling.engine import Ids, Logits
from charformer.sampling.onnx_format import Description, OutdatedError, padded_width, read_metadata, unsealed
from charformer.sampling.prior import GrowingPrior

NUMPY_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NO_CUDA = "onnxruntime finds no CUDA; it takes a GPU and `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
FATAL = 4  # the only severity that onnxruntime prints
SHORT = 8  # characters of a run whose binding is kept; longer runs are prompts, whose lengths seldom repeat
# A graph of one Identity node, with which a session shows whether CUDA works; only an export imports the package onnx.
IDENTITY = (
    b'\x08\x08:9\n\x12\n\x01x\x12\x01y"\x08Identity:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
THREADS = {"fp32": 2, "fp16": 2}  # with fewer bits, a second thread has too little work (docs/onnx.md)


class _Cache(Protocol):
    """A cache of the keys and values of a text, bound to one session."""

    def run(self, ids: Ids, length: int, prior: Rows | None = None) -> Logits:
        """Return the logits, (B, T, V), of ``ids``, (B, T), read after the first ``length`` positions of the cache.

        Later positions are overwritten. ``prior`` has the n-gram table's rows, (B, T, V), for a graph that takes them.
        """

    def slide(self, length: int) -> None:
        """Move the last ``block_size`` - 1 of ``length`` rotary positions to the front, and forget the others."""


class OnnxEngine:
    """A ``RewindableEngine`` on onnxruntime.

    Beyond ``block_size`` the context slides, or its older half is dropped and the rest read again, as in
    ``TorchEngine``.

    Args:
        path: a file that charformer-export wrote.
        threads: the threads of one operator; None takes one in 8 and 4 bits, else two if there are two processors.
        provider: cpu, cuda, or auto, which takes a GPU for a 16-bit file if onnxruntime finds one, else the CPU.

    Raises:
        UserError: if the file cannot be read, was written by another tool or version, or is damaged, or if CUDA is
            requested but not available.
    """

    def __init__(self, path: Path, threads: int | None = None, provider: str = "auto") -> None:
        try:
            content = unsealed(path.read_bytes())
            metadata = read_metadata(content)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(
                f"{path} was not written by charformer-export, or is damaged: {error}; "
                "charformer-export writes it again"
            ) from error
        try:
            self.description = Description.from_metadata(metadata)
            session, self.device = _session(content, threads, provider, self.description.precision)
            _check_ends(session, self.description)
        except OutdatedError as error:
            raise OutdatedError(f"cannot use {path}: {error}", error.precision, error.portable) from error
        except UserError as error:
            raise UserError(f"cannot use {path}: {error}") from error
        self._session = session
        self._config = self.description.config
        self._forget()

    def sibling(self) -> Self:
        """Return an engine on the same session with its own text."""
        other = copy.copy(self)
        other._forget()
        return other

    def _forget(self) -> None:
        self._context = np.zeros((0, 0), np.int64)
        self._cache: _Cache | None = None
        self._length = 0
        self._prior = GrowingPrior(self.description.ngram) if self.description.ngram else None

    @property
    def room(self) -> int:
        """Return how many characters ``extend`` can take at once, after a slide if need be; at 0 it still takes one."""
        config = self._config
        return config.cache_size - (config.block_size - 1 if config.rope_base else self._length)

    def read(self, ids: Ids, before: Ids | None = None) -> Logits:
        """Begin with ``ids``, (B, T <= block_size); return the logits at every position, (B, T, V).

        ``before``, (B, any T), is the text before ``ids``; only an n-gram prior reads it.
        """
        if self._prior is not None:
            self._prior.begin(ids[:, :0] if before is None else before)
        if self._cache is None or len(ids) != len(self._context):
            self._context = np.zeros((len(ids), self._config.block_size), np.int64)
            self._cache = self._new_cache(len(ids))
        self._length = 0
        return self._append(ids)

    def start(self, ids: Ids) -> Logits:
        first = max(0, ids.shape[1] - self._config.block_size)
        return self.read(ids[:, first:], ids[:, :first])[:, -1]

    def extend(self, ids: Ids) -> Logits:
        """Append (B, T) characters and return their logits, (B, T, V); T > 1 only for one text and within ``room``."""
        assert ids.shape[1] == 1 or (len(ids) == 1 and ids.shape[1] <= self.room), "more than fits at once"
        assert self._cache is not None, "start comes first"
        config = self._config
        if self._length + ids.shape[1] > config.cache_size:
            if not config.rope_base:
                half = config.block_size - config.block_size // 2
                before, kept = self._context[:, :half].copy(), self._context[:, half:]
                return self.read(np.concatenate([kept, ids], axis=1), before)[:, -ids.shape[1] :]
            self._cache.slide(self._length)
            self._length = config.block_size - 1
        return self._append(ids)

    def rewind(self, count: int) -> None:
        self._length -= count
        if self._prior is not None:
            self._prior.rewind(count)

    def _append(self, ids: Ids) -> Logits:
        assert self._cache is not None, "start comes first"
        logits = self._cache.run(ids, self._length, None if self._prior is None else self._prior.extend(ids))
        end = self._length + ids.shape[1]
        if not self._config.rope_base:
            self._context[:, self._length : end] = ids
        self._length = end
        return logits

    def _new_cache(self, batch: int) -> _Cache:
        if self.description.portable:
            return GrowingCache(self._session, batch, self._config)
        return SharedCache(self._session, batch, self._config, self.device)


class SharedCache:
    """The cache of a fused graph: buffers of ``cache_size`` positions that each run reads and writes in place."""

    def __init__(self, session: ort.InferenceSession, batch: int, config: ModelConfig, device: str) -> None:
        self._session = session
        self._config = config
        self.device = device
        self.rebinds = device != "cpu"  # a binding copies inputs to another device when it is made, not when it runs
        self._arrays: dict[str, NDArray[Any]] = {}  # on the CPU these share memory with the buffers
        self._buffers: dict[str, Any] = {}
        for past in _pasts(session):
            name = past.name.removeprefix("past_")
            self._arrays[name] = np.zeros((batch, *past.shape[1:]), NUMPY_DTYPES[past.type])
            self._buffers[name] = ort.OrtValue.ortvalue_from_numpy(self._arrays[name], device)
        self._runs: dict[int, _Run] = {}

    def run(self, ids: Ids, length: int, prior: Rows | None = None) -> Logits:
        batch, time = ids.shape
        run = self._runs.get(time)
        if run is None:
            run = _Run(self._session, self._buffers, batch, time, self._config, self.rebinds)
            if time <= SHORT:
                self._runs[time] = run
        return run(ids, length, prior)

    def slide(self, length: int) -> None:
        kept = self._config.block_size - 1
        for name, array in self._arrays.items():
            buffer = self._buffers[name]
            last = (array if self.device == "cpu" else buffer.numpy())[:, :, length - kept : length]
            array[:, :, :kept] = rotate_back(last, self._config, length - kept) if name.startswith("keys") else last
            if self.device != "cpu":
                buffer.update_inplace(array)


class _Run:
    """A binding that runs B texts by T characters, with the same input and output memory each time."""

    def __init__(
        self,
        session: ort.InferenceSession,
        buffers: dict[str, Any],
        batch: int,
        time: int,
        config: ModelConfig,
        rebinds: bool,
    ) -> None:
        self._inputs: dict[str, NDArray[Any]] = {
            "ids": np.zeros((batch, time), np.int64),
            "positions": np.zeros(time, np.int64),
            "lengths": np.zeros(batch, np.int32),
            "total": np.zeros((), np.int32),
        }
        self._ids, self._positions, self._lengths, self._total = self._inputs.values()
        if config.ngram_order:
            self._inputs["prior"] = np.zeros((batch, time, config.vocab_size), np.float32)
        self._offsets = np.arange(time)
        self._logits = np.zeros((batch, time, config.vocab_size), np.float32)
        self._session = session
        self._binding = session.io_binding()
        self._rebinds = rebinds
        self._bind_inputs()
        self._binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(f"past_{name}", buffer)
            self._binding.bind_ortvalue_output(f"present_{name}", buffer)

    def __call__(self, ids: Ids, length: int, prior: Rows | None) -> Logits:
        end = length + ids.shape[1]
        self._ids[...] = ids
        if prior is not None:
            self._inputs["prior"][...] = prior
        np.add(self._offsets, length, out=self._positions)
        self._lengths[...] = end - 1
        self._total[...] = end
        if self._rebinds:
            self._bind_inputs()
        self._session.run_with_iobinding(self._binding)
        return self._logits

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class GrowingCache:
    """The cache of a portable graph, whose outputs are the next run's inputs."""

    def __init__(self, session: ort.InferenceSession, batch: int, config: ModelConfig) -> None:
        self._session = session
        self._config = config
        self._outputs = [output.name for output in session.get_outputs()]
        self._past = {
            past.name: np.zeros((batch, past.shape[1], 0, past.shape[3]), NUMPY_DTYPES[past.type])
            for past in _pasts(session)
        }

    def run(self, ids: Ids, length: int, prior: Rows | None = None) -> Logits:
        feed: dict[str, NDArray[Any]] = {name: array[:, :, :length] for name, array in self._past.items()}
        if prior is not None:
            feed["prior"] = prior
        positions = np.arange(length, length + ids.shape[1])
        logits, *present = self._session.run(self._outputs, {"ids": ids, "positions": positions, **feed})
        self._past = dict(zip(self._past, present, strict=True))
        return logits

    def slide(self, length: int) -> None:
        first = length - (self._config.block_size - 1)
        for name, array in self._past.items():
            last = array[:, :, first:length]
            self._past[name] = rotate_back(last, self._config, first) if name.startswith("past_keys") else last


def _pasts(session: ort.InferenceSession) -> list[Any]:
    return [entry for entry in session.get_inputs() if entry.name.startswith("past_")]


def require_cuda() -> None:
    """Raise UserError unless onnxruntime can run a graph on an NVIDIA GPU."""
    if _cuda_session(IDENTITY, _options(1)) is None:
        raise UserError(NO_CUDA)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry(EXTERNAL_FOLDER, os.devnull)  # else weights may be loaded from nearby files
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    ort.set_default_logger_severity(FATAL)  # its messages are not meant for users; errors arrive as exceptions
    return options


def _cuda_session(content: bytes, options: ort.SessionOptions) -> ort.InferenceSession | None:
    """Return a session on an NVIDIA GPU; None if onnxruntime finds none that it can use."""
    if CUDA in ort.get_available_providers():
        with redirect_stdout(io.StringIO()), suppress(Exception):  # it prints the libraries that it does not find
            ort.preload_dlls()
            session = ort.InferenceSession(content, options, providers=[CUDA, CPU])
            if CUDA in session.get_providers():
                return session
    return None


def _session(content: bytes, threads: int | None, provider: str, precision: str) -> tuple[ort.InferenceSession, str]:
    """Return a session and the device that it runs on. Raises UserError if none can be made."""
    options = _options(threads or min(THREADS.get(precision, 1), _processors()))
    if provider != "cpu" and precision == "fp16":
        if (session := _cuda_session(content, options)) is not None:
            return session, "cuda"
        if provider == "cuda":
            raise UserError(NO_CUDA)
    if provider == "cuda":
        raise UserError(f"it is for the CPU ({precision}); `charformer-export --precision fp16` makes one for CUDA")
    try:
        return ort.InferenceSession(content, options, providers=[CPU]), "cpu"
    except Exception as error:  # onnxruntime's errors share no other base, and name its source files
        raise UserError("onnxruntime cannot load its graph; charformer-export writes it again") from error


def _check_ends(session: ort.InferenceSession, description: Description) -> None:
    """Raise UserError unless the graph's inputs and outputs match its description."""
    config, kind = description.config, "tensor(float16)" if description.precision == "fp16" else "tensor(float)"
    width = config.n_embd // config.n_head
    if description.portable:
        places: int | str = "P"
        wanted = {"ids": "tensor(int64)", "positions": "tensor(int64)"}
    else:
        places, width = config.cache_size, padded_width(config)
        wanted = {"ids": "tensor(int64)", "positions": "tensor(int64)", "lengths": "tensor(int32)"}
        wanted["total"] = "tensor(int32)"
    if config.ngram_order:
        wanted["prior"] = "tensor(float)"
    inputs = {entry.name: entry for entry in session.get_inputs()}
    names = [f"{part}.{layer}" for layer in range(min(config.n_layer, len(inputs))) for part in ("keys", "values")]
    wanted |= {f"past_{name}": kind for name in names}
    outputs = [("logits", "tensor(float)"), *((f"present_{name}", kind) for name in names)]
    if (
        {name: entry.type for name, entry in inputs.items()} != wanted
        or [(entry.name, entry.type) for entry in session.get_outputs()] != outputs
        or any(inputs[f"past_{name}"].shape != ["B", config.n_head, places, width] for name in names)
        or session.get_outputs()[0].shape != ["B", "T", config.vocab_size]
        or (config.ngram_order and inputs["prior"].shape != ["B", "T", config.vocab_size])
    ):
        raise UserError("its graph is not the one that it describes; charformer-export writes it again")


def _processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

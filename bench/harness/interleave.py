"""Let competing engines take turns, each in a worker process, so that ratios hold when the machine's speed drifts."""

import json
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
KILLED = -9  # the exit status when the system kills a process because memory ran out


class WorkerError(Exception):
    """Raised when a worker cannot answer; the message is "OOM" if memory ran out, or one line with the reason."""


class Worker:
    """A running worker process. As a context manager it waits for the process to end, or kills it after an error.

    Args:
        module: the module that ``bench.harness.worker`` loads.
        options: keyword arguments of the module's ``handler``.
        python: the interpreter to run, which for a peer is that of another environment.
    """

    def __init__(self, module: str, options: dict[str, Any], python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "bench.harness.worker", module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},  # onnxruntime-genai's too
            start_new_session=True,  # a terminal's Ctrl-C goes to the bench alone, which then ends its workers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        self._process.communicate()

    def close(self) -> None:
        """End the process at once."""
        self.kill()
        self._process.communicate()

    def kill(self) -> None:
        """End the process, and on POSIX also the processes that it started."""
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def ask(self, request: str, seconds: float | None = None) -> dict[str, Any]:
        """Return the answer to ``request``. Raise WorkerError if there is none, or none within ``seconds``."""
        timer = threading.Timer(seconds or 0, self.kill)
        if seconds is not None:
            timer.start()
        try:
            return self._ask(request)
        except WorkerError:
            if seconds is not None and timer.finished.is_set():
                raise WorkerError(f"took longer than {seconds:.0f} s") from None
            raise
        finally:
            timer.cancel()

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what the process wrote before it ended can still be read
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise WorkerError("OOM" if status == KILLED else f"stopped before it answered, with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


@dataclass(kw_only=True)
class Entry(ABC):
    """An engine that takes turns with others; ``error`` is the reason why it stopped, if it did."""

    error: str | None = None

    @property
    @abstractmethod
    def label(self) -> str:
        """Return the entry's name in a progress bar."""

    @abstractmethod
    def start(self) -> Worker:
        """Return a worker process for the entry."""

    @abstractmethod
    def begin(self, worker: Worker) -> None:
        """Prepare the worker for its first turn."""

    @abstractmethod
    def turn(self, worker: Worker) -> None:
        """Take a turn, and keep its results."""


def interleave(entries: Sequence[Entry], rounds: int, done: Callable[[str], None] = lambda _: None) -> None:
    """Start each entry in a worker process, then let them take turns, ``rounds`` times.

    Entries keep their results as these arrive, so that an interrupted bench has those so far. An entry that fails keeps
    the reason, and the others continue.
    """
    with ExitStack() as running:
        workers = []
        for entry in entries:
            workers.append(running.enter_context(entry.start()))
            _attempt(entry, entry.begin, workers[-1])
            done(f"start of {entry.label}")
        for turn in range(rounds):
            for entry, worker in zip(entries, workers, strict=True):
                _attempt(entry, entry.turn, worker)
                done(f"turn {turn + 1} of {entry.label}")


def _attempt(entry: Entry, step: Callable[[Worker], None], worker: Worker) -> None:
    if entry.error is None:
        try:
            step(worker)
        except WorkerError as error:
            entry.error = str(error)

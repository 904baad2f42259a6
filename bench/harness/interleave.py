"""Let competing engines take turns, each in a worker process, so that ratios hold when the machine's speed drifts."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
KILLED = -9  # the exit status when the system kills a process because memory ran out


class WorkerError(Exception):
    """Raised when a worker cannot answer; the message is "OOM" if memory ran out, or one line with the reason."""


class Worker:
    """A process of ``bench.harness.worker``, which ends with the context that it manages, or when it is closed.

    ``python`` is its interpreter, which for a peer is that of another environment.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once, and wait until it is gone."""
        self._kill()
        self._process.communicate()

    def _kill(self) -> None:
        """Kill the process, and on POSIX also the processes that it started."""
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def ask(self, request: str, seconds: float | None = None) -> dict[str, Any]:
        """Return the answer to ``request``. Raise WorkerError if there is none, or none within ``seconds``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(seconds or 0.0, self._kill)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        with suppress(BrokenPipeError):  # what the process wrote before it ended can still be read
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        is_late = timer.finished.is_set()
        timer.cancel()
        if not line and is_late:
            raise WorkerError(f"took longer than {seconds:.0f} s")
        if not line:
            status = self._process.wait()
            raise WorkerError("OOM" if status == KILLED else f"stopped before it answered, with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


@dataclass
class Entry:
    """An engine that takes turns with others, and its answers so far."""

    module: str
    options: dict[str, Any]
    python: str = field(default=sys.executable, kw_only=True)
    label: str = field(init=False)
    first: str = field(init=False)  # the request before its first turn
    request: str = field(init=False)  # that of a turn
    answers: list[dict[str, Any]] = field(default_factory=list, kw_only=True)  # to ``first``, then one for each turn
    error: str | None = field(default=None, kw_only=True)  # the reason why it stopped

    @property
    def turns(self) -> list[dict[str, Any]]:
        """Return the answers of its turns."""
        return self.answers[1:]

    def ask(self, worker: Worker, request: str) -> None:
        """Keep the answer to a request, or the error; do nothing after an error."""
        if self.error is None:
            try:
                self.answers.append(worker.ask(request))
            except WorkerError as error:
                self.error = str(error)


def interleave(
    entries: Sequence[Entry], rounds: int, on_progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Start each entry in a worker process, then let them take turns, ``rounds`` times.

    Entries keep their answers as these arrive, so that an interrupted bench has those so far. An entry that fails keeps
    the reason, and the others continue.
    """
    with ExitStack() as running:
        workers = []
        for number, entry in enumerate(entries):
            on_progress(f"start of {entry.label}", number, len(entries))
            workers.append(running.enter_context(Worker(entry.module, entry.options, entry.python)))
            entry.ask(workers[-1], entry.first)
        for turn in range(rounds):
            for number, (entry, worker) in enumerate(zip(entries, workers, strict=True), turn * len(entries)):
                on_progress(f"turn {turn + 1} of {entry.label}", number, rounds * len(entries))
                entry.ask(worker, entry.request)

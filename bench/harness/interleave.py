"""Programs that answer each line of stdin with a line of JSON, so that several can take turns."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    """A program ended before it answered; ``returncode`` is its exit status."""

    def __init__(self, returncode: int) -> None:
        super().__init__(f"stopped before it answered, with status {returncode}")
        self.returncode = returncode


class Conversation:
    """A program that is running; a context, which waits for it at the end, or kills it where that is an error's."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        surroundings = os.environ | (environment or {})
        settings: dict[str, Any] = {"encoding": "utf-8", "cwd": ROOT, "env": surroundings}
        settings["start_new_session"] = True  # a terminal's Ctrl-C is for the bench, which then ends its workers
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        """What the program answers to ``line``. Raises StoppedError when it ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what it said before it ended is still there to read
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise StoppedError(self._process.wait())
        return json.loads(answer)

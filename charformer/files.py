"""Atomic writes: killing the program at any moment leaves no half-written file."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from charformer.errors import UserError, WriteError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on exit, flush its file to disk and rename it to ``path``.

    Raises WriteError if the folder cannot be written to; the previous file stays intact. Every OSError of the body
    counts as such, so what the body reads must raise errors of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            _replace(temporary, path)
            if os.name == "posix":
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        with suppress(OSError):  # the reason for the first error may prevent this too
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn an OSError of the body, which only writes ``what``, into a WriteError."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {what}: {error.strerror or error}") from error


def _replace(temporary: Path, path: Path) -> None:
    """Rename ``temporary``; retry for two seconds if Windows refuses because another program has ``path`` open."""
    for _ in range(20 if os.name == "nt" else 0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(0.1)
    temporary.replace(path)


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents. Raises UserError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically and with unchanged newlines."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")

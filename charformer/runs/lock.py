"""A lock for one training at a time in a folder, which the system releases when its holder ends for any reason."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from charformer.errors import UserError
from charformer.files import make_folder
from charformer.runs.folder import RunDir

BEYOND = 2**20  # the byte that Windows locks: after the content, so that others can still read that


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Create the folder of ``run`` and hold its lock, a file that contains our process number.

    Raises UserError if another process holds the lock, with that process's number in the message, or if the lock cannot
    be written. A file that a killed process left is not locked, and is taken over. Folders that this creates and that
    stay empty are removed at the end.
    """
    created = [path for path in (run.path, *run.path.parents) if not path.exists()]
    make_folder(run.path)
    try:
        file = _held(run)
    except OSError as error:
        raise UserError(f"cannot write {run.lock}: {error.strerror or error}") from error
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows cannot remove open files
                if _is_there(file, run):  # not another run's lock, in a folder of the same name
                    run.lock.unlink()
                for path in created:  # these are empty if the work never began
                    path.rmdir()


def _held(run: RunDir) -> BinaryIO:
    """Return the lock's file, locked. Raises UserError if another process holds it."""
    while True:
        # An untrusted run may contain a link here, whose target must not be written to.
        file = open(os.open(run.lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+b")  # noqa: SIM115
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            file.close()
            raise UserError(f"{run.lock} is not a lock file of charformer; remove it")
        if not _lock(file):
            file.seek(0)  # on Windows ``_lock`` has moved to BEYOND
            holder = file.read(20).decode("ascii", "replace") or "unknown"
            file.close()
            raise UserError(
                f"{run.path} is being written by another training, process {holder}; "
                "wait for it, stop it, or choose another `out`"
            )
        if _is_there(file, run):  # else its last holder removed it between our two calls
            file.seek(0)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            return file
        file.close()


def _is_there(file: BinaryIO, run: RunDir) -> bool:
    """Return whether ``file`` is still the lock file in the folder."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), run.lock.lstat())
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO) -> bool:
    """Try to lock ``file``; return whether that succeeded."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(BEYOND)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

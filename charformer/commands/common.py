"""The code that all commands share: a parser whose errors are one line, and exit codes."""

import argparse
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import NoReturn

from charformer.errors import UserError
from charformer.packages import check_packages
from charformer.runs.folder import RunDir
from charformer.runs.listing import RUNS, find_runs
from charformer.ui.console import PlainConsole, printable

OURS = ("bench", "charformer", "export", "kernels")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the layout of its epilog, and whose errors are one line."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Exit with a one-line message, which suggests the nearest flag for a mistyped one."""
        if stranger := re.match("unrecognized arguments: (--[^ =]+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings]
            if near := difflib.get_close_matches(stranger[1], flags, n=1):
                message += f"; did you mean {near[0]}?"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def flag_of(self, field: str) -> str:
        """Return the flag that sets an argument of the library: ``--steps`` for ``max_steps``."""
        flags = [action.option_strings for action in self._actions if action.dest == field]
        return flags[0][-1] if flags and flags[0] else "--" + field.replace("_", "-")


def nonempty(name: str) -> str:
    """Return the name of a file or folder; argparse's type of such arguments.

    Raises ArgumentTypeError for an empty name, as of a shell variable that is not set: taken for an argument that was
    left out, `--out "$UNSET" --overwrite` would replace another run.
    """
    if not name:
        raise argparse.ArgumentTypeError("an empty name; give one, or leave the argument out")
    return name


def execute(parser: Parser, argv: list[str] | None, action: Callable[[argparse.Namespace], int]) -> int:
    """Parse the arguments and run ``action``; return the exit code.

    The code is that of the action, or 2 for a UserError, an error of the operating system or a lack of memory, 130 for
    an interrupt, 141 for a closed pipe, and 1 for a bug. Each error is at most one line on stderr.
    """
    for name in ("stdout", "stderr"):  # a service and pythonw have none
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = parser.parse_args(argv)
    try:
        check_packages()
        code = action(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end(parser, "interrupted", 130)
    except BrokenPipeError:
        # Buffered output would raise again when Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, UserError):
            return _end(parser, error.with_flags(parser.flag_of), 2)
        if isinstance(error, ModuleNotFoundError) and (package := _missing_package(error)):
            advice = f"`pip install {package}` adds it, and `pip install -r requirements/cpu.txt` all packages"
            return _end(parser, f"this needs the package {package}, which is not installed; {advice}", 2)
        if _out_of_memory(error):
            advice = "take a smaller batch, context or model, or fewer samples at once"
            return _end(parser, f"out of memory; {advice}", 2)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            return _end(parser, f"{where}{error.strerror or error}", 2)
        return _end(parser, f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1)


@contextmanager
def logs_to(notices: PlainConsole) -> Iterator[None]:
    """Print the library's log messages, with warnings marked, as notices of the command."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            with suppress(OSError):
                notices.print(prefix + record.getMessage())

    handler, log = Handler(), logging.getLogger("charformer")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def choose_run(given: str | None) -> RunDir:
    """Return the run that --run names, or the one under runs/ with the newest weights. Raises UserError if none."""
    if given is not None:
        return RunDir(given)
    if runs := find_runs(RUNS):
        return runs[0]
    raise UserError(f"there is no run under {RUNS}/; `charformer-train` makes one, --run names another")


def _end(parser: Parser, message: str, code: int) -> int:
    print(f"{parser.prog}: {printable(message.replace(chr(10), ' '))}", file=sys.stderr)
    return code


def _missing_package(error: ModuleNotFoundError) -> str:
    """Return the package that is not installed; an empty string for a module of Python's or of our own."""
    name = (error.name or "").partition(".")[0]
    is_known = name in sys.stdlib_module_names or name in OURS or find_spec(name) is not None
    return "" if is_known else name


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out in Python, NumPy or PyTorch, which raises a plain RuntimeError on the CPU."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )

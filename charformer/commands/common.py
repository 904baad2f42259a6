"""What the commands share: a parser whose errors are one line, and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from charformer.errors import UserError
from charformer.packages import check_packages
from charformer.runs.folder import RunDir
from charformer.ui.console import printable

DEFAULT_RUNS = ("runs/finetune", "runs/pretrain")


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
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def execute(parser: Parser, argv: list[str] | None, action: Callable[[argparse.Namespace], int]) -> int:
    """Parse and run; the exit code is the action's, or 2 for a UserError or what the system refuses, 130 for an
    interrupt, 141 for a closed pipe and 1 for a fault of ours. Each of them is at most one line on stderr."""
    for name in ("stdout", "stderr"):  # a service, or pythonw, has none
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
        # What is still buffered would raise once more when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, UserError):
            return _end(parser, str(error), 2)
        if _out_of_memory(error):
            advice = "take a smaller batch, context or model, or fewer samples at once"
            return _end(parser, f"out of memory; {advice}", 2)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            return _end(parser, f"{where}{error.strerror or error}", 2)
        return _end(parser, f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1)


def choose_run(given: str | None) -> RunDir:
    """The run that --run names, or the first of DEFAULT_RUNS that has weights. Raises UserError without any."""
    if given is not None:
        return RunDir(given)
    for path in DEFAULT_RUNS:
        if RunDir(path).weights.is_file():
            return RunDir(path)
    raise UserError(
        "there is no run in runs/finetune or runs/pretrain; `charformer-train` makes one, --run names another"
    )


def _end(parser: Parser, message: str, code: int) -> int:
    print(f"{parser.prog}: {printable(message.replace(chr(10), ' '))}", file=sys.stderr)
    return code


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or PyTorch ran out of it; PyTorch says so in a plain RuntimeError on the CPU."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )

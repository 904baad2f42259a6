"""What the commands share: a parser whose errors are one line, and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from charformer.errors import UserError


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
    """Parse and run; a UserError is one line on stderr and exit code 2, an interrupt 130, a closed pipe 141."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = parser.parse_args(argv)
    try:
        code = action(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        if args.debug:
            raise
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered would raise once more when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141

"""charformer: the commands under one name."""

import sys
from importlib import import_module

from charformer import __version__

COMMANDS = {
    "train": "pretrain on a text, or fine-tune a run on another",
    "sample": "write with a run or a .onnx file",
    "export": "write a run as a .onnx file, or as a page for the browser",
    "runs": "list the runs of a folder",
    "completion": "print a script that completes these commands in a shell",
}
HELP = f"""\
usage: charformer [--help] [--version] COMMAND ...

Train, fine-tune and sample small character-level GPTs.

commands:
{chr(10).join(f"  {name:<11} {what}" for name, what in COMMANDS.items())}

`charformer COMMAND --help` lists the flags of a command; `charformer-train` is the same as `charformer train`.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit code."""
    first, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if first in COMMANDS:
        code: int = import_module(f"charformer.commands.{first}").main(rest)
        return code
    if first in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if first == "--version":
        print(f"charformer {__version__}")
        return 0
    print(f"charformer: there is no command {first!r}; it can be {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())

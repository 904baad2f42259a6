"""charformer completion: print a script that completes the commands, their flags and files in a shell."""

import argparse
from importlib import import_module

from charformer.commands.common import Parser, execute
from charformer.commands.main import COMMANDS

PROGRAMS = ("train", "sample", "export")  # the subcommands that are also programs, such as charformer-train
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")

EXAMPLES = """\
examples:
  eval "$(charformer completion bash)"          for this shell; as a line of ~/.bashrc, for every later one
  eval "$(charformer completion zsh)"           as a line of ~/.zshrc, after compinit
  charformer completion fish | source           as a line of ~/.config/fish/config.fish
"""


def main(argv: list[str] | None = None) -> int:
    return execute(build_parser(), argv, _run)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("charformer completion", "Print a script that completes the commands in a shell.", EXAMPLES)
    parser.add_argument("shell", choices=SHELLS, help="the shell to print it for")
    return parser


def _run(args: argparse.Namespace) -> int:
    import shtab  # sampling alone does not need it, and the error for a missing package is main's

    parsers = {name: _parser_of(name) for name in COMMANDS}
    front = argparse.ArgumentParser("charformer")
    front.add_argument("--version", action="store_true", help="print the version")
    below = front.add_subparsers()
    for name, parser in parsers.items():
        below.add_parser(name, parents=[parser], add_help=False, help=parser.description)
    for each in (front, *(parsers[name] for name in PROGRAMS)):
        print(shtab.complete(each, args.shell))
    return 0


def _parser_of(name: str) -> Parser:
    """Return the parser of a subcommand, with the kind of file that completes each argument."""
    import shtab

    kinds = {"FILE": shtab.FILE, "FILE|NAME": shtab.FILE, "DIR": shtab.DIRECTORY}
    parser: Parser = import_module(
        f"charformer.commands.{'train_arguments' if name == 'train' else name}"
    ).build_parser()
    for action in parser._actions:
        kind = shtab.FILE if action.dest == "texts" else kinds.get(str(action.metavar))
        if kind is not None:
            action.complete = kind  # type: ignore[attr-defined]
    return parser

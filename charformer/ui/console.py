"""A console that prints text without markup, and a progress bar on it."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class PlainConsole(Console):
    """A console that prints text unchanged: names and texts with [brackets] or :colons: are not markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)
        # FORCE_COLOR and the like make rich treat a pipe as a terminal: colours are fine there, a live panel is not.
        if "force_terminal" not in options and not self.file.isatty():
            self.is_interactive = False

    def print(self, *objects: Any, **options: Any) -> None:
        """Print the objects, with control characters of untrusted text as visible escapes."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, so that the command saves its work before it ends; rich would exit at once."""
        raise BrokenPipeError


def printable(text: str) -> str:
    """Return ``text`` with its control characters, except newline and tab, as visible escapes.

    Untrusted text must not control the terminal.
    """
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) != "Cc" else f"\\x{ord(character):02x}"
        for character in text
    )


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function that updates a bar: (activity, amount done, total). The bar disappears at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("", visible=False)

        def update(doing: str, done: int, total: int | None) -> None:
            progress.update(task, description=doing, completed=done, total=total, visible=True)

        yield update


def age(seconds: float) -> str:
    """Return ``just made``, or the age in words: ``3 hours old``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds / length):
            return f"{count:,} {unit}{'s' if count > 1 else ''} old"
    return "just made"


def duration(seconds: float) -> str:
    """Return ``seconds`` as minutes:seconds, or as hours:minutes:seconds from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

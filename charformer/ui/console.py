"""A console that prints what it is given, and a progress bar on it."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class PlainConsole(Console):
    """A console that prints what it is given: names and texts with [brackets] or :colons: are no markup to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)
        # FORCE_COLOR and the like make rich take a pipe for a terminal: colours are welcome there, a live panel is not.
        if "force_terminal" not in options and not self.file.isatty():
            self.is_interactive = False

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with a stranger's control characters as visible escapes."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)

    def on_broken_pipe(self) -> None:
        """Let the command end as it ends for any closed pipe, its work saved; rich would leave at once."""
        raise BrokenPipeError


def printable(text: str) -> str:
    """``text`` with its control characters, all but newline and tab, as visible escapes: a stranger's text must not
    steer the terminal."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) != "Cc" else f"\\x{ord(character):02x}"
        for character in text
    )


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar to call with (what is being done, how much so far, how much in all); it goes away at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("", visible=False)

        def update(doing: str, done: int, total: int | None) -> None:
            progress.update(task, description=doing, completed=done, total=total, visible=True)

        yield update


def age(seconds: float) -> str:
    """Return ``just made``, or how old in words: ``3 hours old``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds / length):
            return f"{count:,} {unit}{'s' if count > 1 else ''} old"
    return "just made"


def duration(seconds: float) -> str:
    """As minutes:seconds, behind hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

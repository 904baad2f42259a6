"""The one exception that stands for a mistake that the user can mend."""

import re
from collections.abc import Callable

_FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")


class UserError(Exception):
    """What is wrong and what to do about it, in one line; a command prints it and exits with 2.

    The line names arguments as Python does, in backticks: ```top_k` is -1; it must be 0 or more``.
    """

    @property
    def fields(self) -> list[str]:
        """The arguments that the line names."""
        return _FIELD.findall(str(self))

    def with_flags(self, flag_of: Callable[[str], str]) -> str:
        """Return the line with ``flag_of(argument)`` in the place of each argument."""
        return _FIELD.sub(lambda found: flag_of(found[1]), str(self))


class WriteError(UserError):
    """A file that could not be written: a full disk, a folder that is gone or read-only."""

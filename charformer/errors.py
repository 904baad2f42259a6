"""The exception for mistakes that the user can fix."""

import re
from collections.abc import Callable

_FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")


class UserError(Exception):
    """An error that says in one line what is wrong and what to do; a command prints it and exits with 2.

    The line names arguments as in Python, in backticks: ```top_k` is -1; it must be 0 or more``.
    """

    @property
    def fields(self) -> list[str]:
        """Return the arguments that the line names."""
        return _FIELD.findall(str(self))

    def with_flags(self, flag_of: Callable[[str], str]) -> str:
        """Return the line with each argument replaced by ``flag_of(argument)``."""
        return _FIELD.sub(lambda found: flag_of(found[1]), str(self))


class WriteError(UserError):
    """An error for a file that cannot be written: a full disk, a missing folder or a read-only one."""

"""The one exception that stands for a mistake that the user can mend."""


class UserError(Exception):
    """What is wrong and what to do about it, in one line; a command prints it and exits with 2."""


class WriteError(UserError):
    """A file that could not be written: a full disk, a folder that is gone or read-only."""

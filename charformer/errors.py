"""The one exception that stands for a mistake that the user can mend."""


class UserError(Exception):
    """What is wrong and what to do about it, in one line; a command prints it and exits with 2."""

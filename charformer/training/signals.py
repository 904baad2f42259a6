"""Signals that ask a training to stop, which it does after its step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from charformer.ui.console import PlainConsole


@contextmanager
def stop_signals(teller: PlainConsole, is_patient: bool) -> Iterator[list[int]]:
    """A list that gains the number of the first SIGINT, SIGTERM or SIGHUP; a second one takes its usual course.

    A signal that whoever started us has had ignored (nohup does that) stays ignored. ``is_patient`` ignores a
    second one too: for processes of a launcher, which passes on what the terminal has sent them already, and kills
    those that do not end in time.
    """
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def take(number: int, _frame: object) -> None:
        received.append(number)
        if is_patient:
            return
        restore()
        with suppress(OSError):  # a terminal that has gone away; what matters is the save
            teller.print("stopping after this step; once more leaves at once")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, take)
    try:
        yield received
    finally:
        restore()

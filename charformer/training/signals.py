"""Requests to stop a training, which it grants after its step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class StoppedError(Exception):
    """Somebody asked to stop what is under way."""


class StopRequest:
    """Whether a training should stop after its step, and the number of the signal that asked for it first."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def request(self, number: int) -> None:
        """Ask to stop; only the first request counts."""
        if self.signal is None:
            self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals(notify: Callable[[str], None], is_patient: bool) -> Iterator[StopRequest]:
    """Let SIGINT, SIGTERM and SIGHUP ask to stop while this lasts; a second signal takes its usual course.

    In another thread than the main one they keep their course. A signal that our parent process had ignored, as nohup
    does, stays ignored.

    Args:
        notify: called with a line for the user when the first signal comes.
        is_patient: ignore a second signal too. It is for processes of a launcher, which passes on what the terminal has
            sent them already, and kills those that do not end in time.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield stop
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def take(number: int, _frame: object) -> None:
        stop.request(number)
        if is_patient:
            return
        restore()
        with suppress(OSError):  # a terminal that has gone away; what matters is the save
            notify("stopping after this step; once more leaves at once")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, take)
    try:
        yield stop
    finally:
        restore()

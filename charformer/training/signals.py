"""Requests to stop a training, which take effect after its current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class StoppedError(Exception):
    """Raised to end work in progress when a stop was requested."""


class StopRequest:
    """A flag that stops a training after its current step, with the number of the first signal that set it."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def request(self, number: int) -> None:
        """Request a stop; only the first request is recorded."""
        if self.signal is None:
            self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals(notify: Callable[[str], None], is_patient: bool) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests to stop; a second signal has its usual effect.

    In a thread other than the main one, signals keep their usual effect. A signal that the parent process ignored, as
    nohup does, stays ignored.

    Args:
        notify: a function that is called with a line for the user when the first signal comes.
        is_patient: whether to ignore a second signal too. This is for processes of a launcher, which forwards signals
            that the terminal has already sent them, and kills those that do not end in time.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
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
        with suppress(OSError):  # the terminal may have closed; the save matters more
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

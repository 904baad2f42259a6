"""A stopwatch that can be paused."""

import time


class Stopwatch:
    """A stopwatch for the seconds of training since an evaluation, without the pauses; stopped at first."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def running(self) -> float:
        """Return the seconds since the last start, 0 while stopped."""
        return 0.0 if self._since is None else time.perf_counter() - self._since

    def stop(self) -> float:
        """Add the seconds since the last start to ``seconds``, and return them."""
        seconds = self.running
        self.seconds += seconds
        self._since = None
        return seconds

    def start(self) -> None:
        self._since = time.perf_counter()

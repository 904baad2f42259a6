"""Add up the seconds of named parts of a program."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts the time of each part without that of the parts within it.

    Attributes:
        seconds: the sum so far, by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._since = 0.0

    def begin(self, part: str) -> None:
        """Begin a part, within the one that is running if there is one."""
        self._count()
        self._parts.append(part)

    def end(self) -> None:
        """End the part that began last; the one around it continues."""
        self._count()
        self._parts.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the context, or as a decorator each call of a function, as a part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now

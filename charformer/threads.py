"""The number of threads to compute with: one for each processor that other programs leave idle.

The threads of one operation wait for one another. If one of them has no processor, all of them wait for the scheduler
at every operation, and two threads beside one busy program are slower than one (bench.busy).
"""

import os
import time

import psutil

MIN_SECONDS = 0.2  # the system counts in hundredths of a second


class LoadProbe:
    """Measures the processor time that other programs use, from its creation on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._own, self._all = time.process_time(), _busy_seconds()

    def threads(self, most: int) -> int:
        """Return a number of threads from 1 to ``most``: the processors that other programs leave idle, rounded.

        This waits until some tenths of a second have passed since the probe was created.
        """
        time.sleep(max(0.0, self._began + MIN_SECONDS - time.perf_counter()))
        seconds = time.perf_counter() - self._began
        others = (_busy_seconds() - self._all) - (time.process_time() - self._own)
        idle = (os.cpu_count() or 1) - others / seconds
        return max(1, min(most, round(idle)))


def _busy_seconds() -> float:
    """Return the seconds that all processors together have been busy since the system started."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))

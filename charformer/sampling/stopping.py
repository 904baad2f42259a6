"""Texts that end a sample: nothing from where one of them begins is shown."""

from collections.abc import Sequence


class StopText:
    """Passes on a text that comes in pieces, up to the first place where one of ``stops`` stands.

    What may be the beginning of a stop is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_reached = False

    def push(self, piece: str) -> str:
        """Take in the next characters; return those that can be shown by now."""
        shown = ""
        for character in piece if self._stops else "":
            if self.is_reached:
                break
            self._held += character
            ends = [len(stop) for stop in self._stops if self._held.endswith(stop)]
            self.is_reached = bool(ends)
            kept = max(ends) if ends else self._possible()
            shown += self._held[: len(self._held) - kept]
            self._held = "" if ends else self._held[len(self._held) - kept :]
        return shown if self._stops else piece

    def finish(self) -> str:
        """Return what is still held back, since no more is to come."""
        held, self._held = self._held, ""
        return held

    def _possible(self) -> int:
        """Return the length of the longest ending of what is held that begins a stop."""
        return max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )

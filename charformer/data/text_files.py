"""The files that --data names, as one text: folders searched, pipes copied, encodings converted to UTF-8."""

import codecs
import encodings
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from charformer.errors import UserError
from charformer.files import make_folder, writing

PIECE_BYTES = 1 << 18  # small enough that its 32-bit code points stay in the cache
BYTE_ORDER_MARK = codecs.BOM_UTF8
LISTED = 10  # the most names in a message
USUAL = "cp1252 is usual in western Europe, cp1251 for Cyrillic, gb18030 for Chinese, shift_jis for Japanese"


@dataclass(frozen=True)
class TextFile:
    """A file: the name for messages, the place that config.json records, and a way to read it from the start."""

    name: str
    source: str
    size: int
    open: Callable[[], BinaryIO]

    @classmethod
    def of(cls, path: Path) -> "TextFile":
        """Return the file on disk at ``path``."""
        return cls(path.name, str(path.absolute()), path.stat().st_size, lambda: open(path, "rb"))


class Text:
    """Files joined as UTF-8, with a newline between two if the first does not end in one.

    A byte-order mark at the start of a file is not part of its text.
    """

    def __init__(self, name: str, files: Sequence[TextFile], encoding: str = "utf-8") -> None:
        self.name = name
        self.files = files
        self.encoding = encoding
        self.size = sum(file.size for file in files)

    def sha256(self) -> str:
        """Return the SHA-256 of the whole as UTF-8; for a single UTF-8 file, this is the file's own.

        Raises UserError if a file cannot be read.
        """
        digest = hashlib.sha256()
        for _, block, _ in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def pieces(self, on_bytes: Callable[[int], None]) -> Iterator[str]:
        """Decode the whole, a piece at a time, with \\n for every newline.

        Newlines are Python's universal ones: a text saved on Windows has the same vocabulary, and so trains the same
        model, as it does elsewhere. ``on_bytes`` is called with the number of bytes of the files that are read so far.

        Raises UserError if a file cannot be read or is not UTF-8, with the name of the file and the offset of the byte.
        """
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        offset, rest = 0, b""
        for file, block, done in self._blocks():
            if self.encoding == "utf-8" and offset == 0 and (likely := likely_encoding(block)):
                raise UserError(f"{file.name} is not UTF-8 but {likely}, it seems; pass `encoding` {likely}")
            try:
                text, used = codecs.utf_8_decode(rest + block, "strict", not block)
            except UnicodeDecodeError as error:
                bad = (rest + block)[error.start]
                raise UserError(
                    f"{file.name} is not UTF-8: byte {bad:#04x} at offset {offset + error.start:,}; save it as UTF-8, "
                    f"or name its encoding with `encoding` ({USUAL})"
                ) from None
            if offset == 0 and file is self.files[0]:
                text = text.removeprefix("\ufeff")
            rest = (rest + block)[used:]
            offset = offset + used if block else 0
            on_bytes(min(done, self.size))
            yield newlines.decode(text, final=not block)

    def _blocks(self) -> Iterator[tuple[TextFile, bytes, int]]:
        """Yield each file's blocks of UTF-8, and how many bytes of the files are read; a file's last block is empty."""
        last = b"\n"
        before = 0  # bytes of earlier files
        for number, file in enumerate(self.files):
            with _reading(file.name):
                stream = file.open()
            with stream:
                blocks = (
                    _read(stream, file.name)
                    if self.encoding == "utf-8"
                    else _transcoded(stream, file.name, self.encoding)
                )
                first = next(blocks, b"")
                if number:
                    first = first.removeprefix(BYTE_ORDER_MARK)
                if first and last not in (b"\n", b"\r"):
                    yield file, b"\n", before
                    yield file, b"", before
                for block in chain((first,), blocks):
                    if block:  # an empty block would end the file
                        last = block[-1:]
                        yield file, block, before + stream.tell()
                before += stream.tell()
            yield file, b"", before


def find(place: str, copies: Path, encoding: str, notice: Callable[[str], None]) -> list[TextFile]:
    """Return the file at ``place``, the text files of that folder, or the content of that pipe ("-" is stdin).

    A pipe can be read only once, so it is copied to a file without a name in the folder ``copies``. ``notice`` is
    called with a message about which files of a folder were used. Raises UserError for a folder without text files or
    with one that cannot be read, WriteError if a pipe cannot be copied, and OSError for a place that cannot be read.
    """
    if place == "-":
        if sys.stdin is None:
            raise UserError("`data` - reads standard input, and there is none")
        return [_copied("standard input", place, sys.stdin.buffer, copies)]
    path = Path(place)
    if path.is_dir():
        return _in_folder(path, encoding, notice)
    if path.is_file():
        return [TextFile.of(path)]
    with open(path, "rb") as stream:
        return [_copied("pipe", place, stream, copies)]


def checked_encoding(name: str) -> str:
    """Return Python's name of an encoding. Raises UserError if it has none, or if the codec does not encode text."""
    with suppress(LookupError, ValueError):
        bytes(4).decode(name)  # fails for codecs that do not encode text
        # Use Python's own search, because a package may have added one that accepts any name.
        if found := encodings.search_function(encodings.normalize_encoding(name).lower()):
            return found.name
    raise UserError(f"`encoding` {name} is not an encoding that Python knows; {USUAL}")


def likely_encoding(block: bytes) -> str:
    """Return which of UTF-16 and UTF-32 the first block of a file is in, or an empty string for neither.

    Without a byte-order mark, zeros reveal them: they fall on the same bytes of each unit.
    """
    for name, mark in (("utf-32", codecs.BOM_UTF32_LE), ("utf-32", codecs.BOM_UTF32_BE)):
        if block.startswith(mark):
            return name
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [block[place::4].count(0) for place in range(4)]
    if sum(zeros) < max(8, len(block) / 500):
        return ""
    if sum(zeros) > len(block) / 2:
        return "utf-32-le" if zeros[3] >= zeros[0] else "utf-32-be"
    odd = zeros[1] + zeros[3]
    if odd >= 0.95 * sum(zeros):
        return "utf-16-le"
    return "utf-16-be" if odd <= 0.05 * sum(zeros) else ""


def _in_folder(folder: Path, encoding: str, notice: Callable[[str], None]) -> list[TextFile]:
    """Return the text files below ``folder``, without hidden ones, in the order of their paths."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    texts = [path for path in paths if _is_text(path, encoding)]
    if not texts:
        raise UserError(f"the folder {folder} has no text file in {encoding} in it")
    taken = set(texts)
    skipped = [path for path in paths if path not in taken]
    listed = f"{folder}: {len(texts):,} text files, {_listed(folder, texts)}"
    notice(listed + (f"; left out: {_listed(folder, skipped)}" if skipped else ""))
    return [TextFile.of(path) for path in texts]


def _listed(folder: Path, paths: list[Path]) -> str:
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:LISTED])
    return names + (f" and {len(paths) - LISTED:,} more" if len(paths) > LISTED else "")


def _is_text(path: Path, encoding: str) -> bool:
    """Return whether the file begins with characters of ``encoding``, none of them NUL."""
    with _reading(str(path)), open(path, "rb") as file:
        start = file.read(PIECE_BYTES)
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start, final=len(start) < PIECE_BYTES)
    except UnicodeError:
        return False
    return bool(text) and "\0" not in text


def _copied(name: str, source: str, stream: BinaryIO, folder: Path) -> TextFile:
    make_folder(folder)
    with writing(f"a copy of {name} in {folder}"):
        copy = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        try:
            for block in _read(stream, name):
                copy.write(block)
            copy.flush()
        except OSError:
            with suppress(OSError):  # else the garbage collector closes it, which reports the error a second time
                copy.close()
            raise
    size = copy.tell()

    def rewound() -> BinaryIO:
        copy.seek(0)
        return os.fdopen(os.dup(copy.fileno()), "rb")

    return TextFile(name, source, size, rewound)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn an OSError of the body, which reads the file ``name``, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {error.strerror or error}") from error


def _read(stream: BinaryIO, name: str) -> Iterator[bytes]:
    with _reading(name):
        while block := stream.read(PIECE_BYTES):
            yield block


def _transcoded(stream: BinaryIO, name: str, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0
    try:
        for block in _read(stream, name):
            text = decoder.decode(block)
            offset += len(block)
            if text:
                yield text.encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        place = f" near byte {offset + error.start:,}" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{name} is not {encoding}{place}; try another `encoding`") from None

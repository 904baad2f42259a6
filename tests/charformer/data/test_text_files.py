import errno
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from charformer.data import corpus
from charformer.data.text_files import Text, TextFile, likely_encoding
from charformer.data.vocab import Vocab
from charformer.errors import UserError, WriteError


def decoded(loaded: corpus.Corpus) -> str:
    return Vocab(loaded.alphabet).decode(loaded.ids)


def written(folder: Path, **contents: bytes) -> list[str]:
    """Write the files, and return their paths in the same order."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in contents]


def test_files_follow_one_another_with_a_newline_where_one_is_missing(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    places = written(
        tmp_path, a=mark + b"one", b=mark + b"two\r\n", c=b"", d=b"three\r", e=mark, f="fünf".encode(), g=b"\nsix"
    )
    whole = mark + b"one\ntwo\r\nthree\r" + "fünf".encode() + b"\n\nsix"
    loaded = corpus.load(places)
    assert decoded(loaded) == "one\ntwo\nthree\nfünf\n\nsix"
    assert loaded.sha256 == hashlib.sha256(whole).hexdigest()
    assert loaded.source == places
    assert loaded.name == "a and 6 more"
    assert decoded(corpus.load(places[::-1])).startswith("\nsix\nfünf\nthree\ntwo\n")


def test_a_bad_byte_is_named_with_its_file_and_its_offset_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^b is not UTF-8: byte 0xff at offset 3;"):
        corpus.load(written(tmp_path, a=b"fine", b=b"abc\xff"))
    with pytest.raises(UserError, match=r"^a is not UTF-8: byte 0xc3 at offset 4;"):
        corpus.load(written(tmp_path, a=b"cut \xc3", b=b"\xa9"))


def test_a_folder_gives_its_text_files_in_order_and_says_which(tmp_path: Path) -> None:
    written(tmp_path / "books", b=b"second\n", a=b"first", picture=b"\x89PNG\0\0", empty=b"", latin=b"caf\xe9")
    written(tmp_path / "books" / "more", c=b"third")
    written(tmp_path / "books" / ".git", config=b"not this")
    said: list[str] = []
    loaded = corpus.load(str(tmp_path / "books"), notice=said.append)
    assert decoded(loaded) == "first\nsecond\nthird"
    assert loaded.name == "books/"
    place = str(Path("more") / "c")
    assert said == [f"{tmp_path / 'books'}: 3 text files, a, b, {place}; left out: empty, latin, picture"]
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="has no text file"):
        corpus.load(str(tmp_path / "bare"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_read_once_and_leaves_its_ids_in_the_cache(tmp_path: Path, cache_folder: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    content = "déjà vu\n" * 50_000
    writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=(content, "utf-8"))
    writer.start()
    loaded = corpus.load(str(tmp_path / "fifo"))
    writer.join()
    assert decoded(loaded) == content
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".json", ".npy"]


def test_standard_input_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place,) = written(tmp_path, a=b"from a file")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    loaded = corpus.load(["-", place])
    assert decoded(loaded) == "from a pipe\nfrom a file"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="there is none"):
        corpus.load("-")


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files")
def test_a_pipe_that_cannot_be_copied_is_not_called_unreadable(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe\n" * 100_000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(
            WriteError, match=f"^cannot write a copy of standard input in {re.escape(str(cache_folder))}"
        ):
            corpus.load("-")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("attempt", [1, 2, 3], ids=["hash", "survey", "encoding"])
def test_a_file_that_can_no_longer_be_read_is_not_called_unwritable(attempt: int) -> None:
    opened = []

    def open_again() -> BinaryIO:
        opened.append("a")
        if len(opened) == attempt:
            raise OSError(errno.EIO, "Input/output error")
        return io.BytesIO(b"some text")

    file = TextFile("a", "a", 9, open_again)
    with pytest.raises(UserError, match=r"^cannot read a: Input/output error$"):
        corpus.encoded(Text("a", [file]), lambda *_: None)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file whose first byte cannot be read")
def test_the_file_of_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    written(tmp_path, a=b"first")
    (tmp_path / "b").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"^cannot read {re.escape(str(tmp_path / 'b'))}: "):
        corpus.load(str(tmp_path))


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["Plain English.\n", "Всё смешалось в доме Облонских.\n", "道可道非常道\n名可名非常名\n"]
)
def test_wide_encodings_are_recognised_and_read(name: str, text: str, tmp_path: Path) -> None:
    (place,) = written(tmp_path, a=(text * 20).encode(name))
    with pytest.raises(UserError, match=f"a is not UTF-8 but {name}, it seems; pass `encoding` {name}"):
        corpus.load(place)
    reported: list[tuple[str, int, int | None]] = []
    assert decoded(corpus.load(place, lambda *report: reported.append(report), encoding=name)) == text * 20
    size = Path(place).stat().st_size
    assert ("reading a", size, size) in reported
    assert reported[-1] == ("encoding a", size, size), "progress counts the bytes of the file, not those of UTF-8"


def test_texts_with_some_nul_characters_are_not_taken_for_utf_16(tmp_path: Path) -> None:
    text = "a\0b\0\0cd\0" * 100
    assert decoded(corpus.load(written(tmp_path, a=text.encode()))) == text
    assert likely_encoding("Всё\n".encode()) == ""


@pytest.mark.parametrize("name", ["cp1251", "shift_jis", "utf-7", "utf-8-sig", "latin-1"])
def test_other_encodings_give_the_text_that_utf_8_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charformer.data.text_files.PIECE_BYTES", 7)  # pieces that cut characters
    text = "plain" if name == "latin-1" else "Всё смешалось\r\n" * 30
    first, second = written(tmp_path, a=text.encode(name), b=text.encode(name))
    loaded = corpus.load([first, second], encoding=name)
    assert decoded(loaded) == decoded(corpus.load(written(tmp_path, c=text.encode(), d=text.encode())))
    assert (loaded.sha256 == corpus.load(str(tmp_path / "c")).sha256) is False


def test_encodings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (place,) = written(tmp_path, a="dé".encode("latin-1"))
    with pytest.raises(UserError, match="a is not ascii near byte 1; try another `encoding`"):
        corpus.load(place, encoding="ascii")
    for name in ("no-such", "base64", "a\0b"):
        with pytest.raises(UserError, match="not an encoding that Python knows"):
            corpus.load(place, encoding=name)
    with pytest.raises(UserError, match="python-docs is UTF-8"):
        corpus.load("python-docs", encoding="latin-1")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's process substitution")
def test_process_substitution(tmp_path: Path) -> None:
    script = "import sys; from charformer.data import corpus; print(corpus.load(sys.argv[1]).summary())"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{script}' <(printf 'ab%.0s' {{1..500}})"],
        capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "'characters': 1000" in done.stdout

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charformer.data import corpus, text_files
from charformer.data.vocab import Vocab
from charformer.errors import UserError


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def decoded(loaded: corpus.Corpus) -> str:
    return Vocab(loaded.alphabet).decode(loaded.ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(min_size=1), piece=st.integers(4, 9))
def test_a_file_comes_back_whatever_the_pieces(text: str, piece: int, tmp_path: Path, cache_folder: Path) -> None:
    path = tmp_path / "text.txt"
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece)
        for cached in cache_folder.glob("*"):
            cached.unlink()
        data = write(path, text.encode())
        if not expected:
            with pytest.raises(UserError, match="is empty"):
                corpus.load(data)
            return
        loaded = corpus.load(data)
        assert decoded(loaded) == expected
        assert loaded.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert decoded(corpus.load(data)) == expected  # from the cache


def test_a_byte_order_mark_and_windows_newlines_do_not_change_the_text(tmp_path: Path) -> None:
    plain = corpus.load(write(tmp_path / "a", b"one\ntwo\n"))
    marked = corpus.load(write(tmp_path / "b", b"\xef\xbb\xbfone\r\ntwo\r\n"))
    assert decoded(plain) == decoded(marked) == "one\ntwo\n"


@pytest.mark.parametrize(("distinct", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_ids_take_the_smallest_type_that_holds_them(distinct: int, dtype: type, tmp_path: Path) -> None:
    text = "".join(chr(code) for code in range(0x10000, 0x10000 + distinct)) * 2
    loaded = corpus.load(write(tmp_path / "text", text.encode()))
    assert loaded.ids.dtype == dtype
    assert isinstance(loaded.ids, np.memmap)
    assert decoded(loaded) == text


def test_the_split_is_ninety_to_ten_and_loses_nothing(tmp_path: Path) -> None:
    loaded = corpus.load(write(tmp_path / "text", b"0123456789" * 10 + b"abc"))
    assert (len(loaded.train), len(loaded.validation)) == (92, 11)
    np.testing.assert_array_equal(np.concatenate([loaded.train, loaded.validation]), loaded.ids)


def test_the_table_maps_to_another_vocabulary(tmp_path: Path) -> None:
    loaded = corpus.load(write(tmp_path / "text", b"cab"))
    vocab = Vocab("zb\nac")
    assert vocab.decode(loaded.table(vocab)[loaded.ids]) == "cab"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"good \xff bad", "byte 0xff at offset 5"),
        (b"cut \xf0\x9f\x98", "byte 0xf0 at offset 4"),
        ("é".encode("latin-1"), "not UTF-8"),
        ("hello".encode("utf-16"), "not UTF-8 but utf-16, it seems; pass `encoding` utf-16"),
    ],
)
def test_bad_texts_are_refused(content: bytes, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        corpus.load(write(tmp_path / "text", content))


def test_the_offset_of_a_bad_byte_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    content = "é".encode() * 200_000
    with pytest.raises(UserError, match=r"byte 0x80 at offset 400,000"):
        corpus.load(write(tmp_path / "text", content + b"\x80"))


def test_missing_files_and_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*tiny-shakespeare"):
        corpus.load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="has no text file in utf-8"):
        corpus.load(str(tmp_path))


def test_too_short_a_text_says_how_short_and_what_helps(tmp_path: Path) -> None:
    loaded = corpus.load(write(tmp_path / "short.txt", b"0123456789" * 10))
    loaded.require(9, "")
    with pytest.raises(UserError, match=r"too short: 90 characters to train on and 10 .*needs 11 in each: do this"):
        loaded.require(10, "do this")


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache_folder: Path) -> None:
    data = write(tmp_path / "text", b"some text")
    corpus.load(data)
    (ids,) = cache_folder.glob("*.npy")
    ids.write_bytes(ids.read_bytes()[:-3])
    assert decoded(corpus.load(data)) == "some text"
    (alphabet,) = cache_folder.glob("*.json")
    alphabet.write_text("{}", encoding="utf-8")
    assert decoded(corpus.load(data)) == "some text"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_large_text_stays_out_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        for _ in range(100):
            file.write("A line of text, with an é in it.\n".encode() * 32_000)  # 1.1 MB
    script = (
        "import sys; from pathlib import Path; from charformer.data import corpus;"
        "corpus.cache_folder = lambda: Path(sys.argv[2]);"
        "peak = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) * 1024;"
        "before = peak(); loaded = corpus.load(sys.argv[1]); print(peak() - before, len(loaded.ids))"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "cache")]
    grown, characters = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(characters) == 100 * 32_000 * 33
    assert int(grown) < 40e6  # the text has 109 MB


def test_a_cache_that_does_not_fit_its_alphabet_is_made_again(tmp_path: Path, cache_folder: Path) -> None:
    path = write(tmp_path / "text.txt", b"abab" * 9)
    sha256 = corpus.load(path).sha256
    for strange in (np.full(36, 0.5), np.zeros(36, np.int64), np.full(36, 200, np.uint8)):
        np.save(cache_folder / f"{sha256}.npy", strange)
        assert decoded(corpus.load(path)) == "abab" * 9


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_text_is_read_in_bounded_memory(tmp_path: Path) -> None:
    size = 64 * 2**20
    with open(tmp_path / "large.txt", "wb") as file:
        for _ in range(64):
            file.write(b"0123456789abcde\n" * 2**16)
    script = """if True:
        import sys
        from pathlib import Path
        from charformer.data import corpus
        def peak(): return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        before = peak()
        print(len(corpus.load(sys.argv[1]).ids), peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, "large.txt"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    characters, grown = map(int, done.stdout.split())
    assert characters == size
    assert grown < size // 4

from pathlib import Path

import numpy as np
import pytest

from charformer.data import corpus
from charformer.data.cached import find_cached
from charformer.data.division import divided, validated_on
from charformer.data.vocab import Vocab
from charformer.errors import UserError


def test_a_run_s_text_is_found_if_it_is_available(tmp_path: Path, cache_folder: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"some text " * 20)
    summary = corpus.load(str(path)).summary()
    again = find_cached(summary)
    assert again is not None
    assert Vocab(again.alphabet).decode(again.ids) == "some text " * 20
    for file in cache_folder.iterdir():
        file.unlink()
    assert find_cached(summary) is not None  # from its old place
    path.write_bytes(b"another text")
    for file in cache_folder.iterdir():
        file.unlink()
    assert find_cached(summary) is None
    assert not list(cache_folder.iterdir())  # nothing unrequested is copied
    (cache_folder / f"{summary['sha256']}.txt").write_bytes(b"some text " * 20)  # a download
    assert find_cached(summary) is not None
    stand_in = corpus.load("python-docs").summary()
    assert find_cached(stand_in) is not None


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"name": "x", "source": "/dev/zero", "sha256": "0" * 64},
        {"name": "x", "source": "a\0b", "sha256": "0" * 64},
        {"name": "x", "source": "\ud800", "sha256": "0" * 64},
        {"name": "x", "source": "nowhere", "sha256": "../../somewhere"},
        {"name": "python-docs", "source": "", "sha256": "0" * 64},
        {"name": 3, "source": None, "sha256": ["0" * 64]},
    ],
    ids=str,
)
def test_a_stranger_s_summary_finds_nothing(summary: dict[str, object]) -> None:
    assert find_cached(summary) is None


def test_several_files_in_another_encoding_come_back_with_their_division(tmp_path: Path, cache_folder: Path) -> None:
    places = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"déjà vu, {name} " * 500, encoding="cp1252")
        places.append(str(tmp_path / name))
    loaded = divided(corpus.load(places, encoding="latin-1"), 0.25, "blocks")
    summary = loaded.summary()
    assert summary["source"] == places
    for cached in (True, False):
        if not cached:
            for file in cache_folder.iterdir():
                file.unlink()
        again = find_cached(summary)
        assert again is not None
        assert again.summary() == summary
        np.testing.assert_array_equal(again.ids, loaded.ids)
        np.testing.assert_array_equal(again.validation, loaded.validation)
    (tmp_path / "b").unlink()
    assert find_cached(summary) is not None  # the cache has it
    for file in cache_folder.iterdir():
        file.unlink()
    assert find_cached(summary) is None


def test_a_division_that_the_cache_cannot_take_is_an_error(tmp_path: Path, cache_folder: Path) -> None:
    (tmp_path / "a").write_text("abc" * 200, encoding="utf-8")
    summary = divided(corpus.load(str(tmp_path / "a")), 0.25, "blocks").summary()
    (blocks,) = cache_folder.glob("*-blocks-*")
    blocks.unlink()
    (blocks / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        find_cached(summary)


def test_a_text_that_validates_comes_back_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc" * 200, encoding="utf-8")
    (tmp_path / "b").write_text("abx" * 100, encoding="utf-8")
    both = validated_on(corpus.load(str(tmp_path / "a")), corpus.load(str(tmp_path / "b")))
    again = find_cached(both.summary())
    assert again is not None
    assert again.alphabet == both.alphabet == "abcx"
    assert Vocab(again.alphabet).decode(again.validation) == "abx" * 100
    assert Vocab(again.alphabet).decode(again.train) == "abc" * 200


@pytest.mark.parametrize(
    "validation",
    [
        {"share": 0.0, "split": "tail"},
        {"share": 2.5, "split": "blocks"},
        {"share": float("nan"), "split": "blocks"},
        {"share": "0.1", "split": "tail"},
        {"share": 0.1, "split": "../x"},
        {"sha256": "0" * 64},
        {"sha256": "../../x", "name": "x", "source": "/etc/passwd"},
    ],
    ids=str,
)
def test_a_stranger_s_division_finds_nothing(validation: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc" * 200, encoding="utf-8")
    assert find_cached(corpus.load(str(tmp_path / "a")).summary() | {"validation": validation}) is None

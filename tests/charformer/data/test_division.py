import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from charformer.data import corpus
from charformer.data.division import divided, tail_differs, validated_on
from charformer.data.vocab import Vocab
from charformer.errors import UserError


def loaded(folder: Path, text: str) -> corpus.Corpus:
    path = folder / f"{len(text)}.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return corpus.load(str(path))


def test_another_share_of_the_tail(tmp_path: Path) -> None:
    text = loaded(tmp_path, "0123456789" * 10)
    assert (len(text.train), len(text.validation)) == (90, 10)
    half = divided(text, 0.5, "tail")
    assert (len(half.train), len(half.validation)) == (50, 50)
    assert half.summary()["validation"] == {"share": 0.5, "split": "tail"}
    assert "validation" not in text.summary()
    for share in (0.0, 1.0, -0.1, 2.0, float("nan")):
        with pytest.raises(UserError, match="`validation_share` is"):
            divided(text, share, "tail")


@pytest.mark.parametrize("characters", [3, 50, 1000, 20_001, 700_000])
def test_blocks_lie_all_over_the_text_and_nothing_is_lost(characters: int, tmp_path: Path) -> None:
    text = loaded(tmp_path, "".join(chr(0x100 + code % 60_000 % 0xD000) for code in range(characters)))
    blocks = divided(text, 0.1, "blocks")
    assert len(blocks.train) == len(text.train)
    assert sorted(blocks.ids) == sorted(text.ids)
    if characters >= 20_000:
        place = np.zeros(len(text.alphabet), int)
        place[np.asarray(text.ids[:50_000])] = np.arange(min(50_000, characters))
        breaks = np.flatnonzero(np.diff(blocks.validation.astype(int)) != 1)
        assert len(breaks) in range(1, 20 + characters // 50_000)
    assert blocks.ids[-1] == text.ids[-1]


def test_blocks_are_written_once_and_again_if_they_are_damaged(tmp_path: Path, cache_folder: Path) -> None:
    text = loaded(tmp_path, "0123456789" * 30)
    blocks = np.array(divided(text, 0.1, "blocks").ids)
    (path,) = cache_folder.glob("*-blocks-*")
    written = path.stat()
    np.testing.assert_array_equal(divided(text, 0.1, "blocks").ids, blocks)
    assert os.path.samestat(path.stat(), written)
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    np.save(path, np.full(300, 10, np.uint8))  # ids that the alphabet does not have
    np.testing.assert_array_equal(divided(text, 0.1, "blocks").ids, blocks)


def test_another_text_validates(tmp_path: Path) -> None:
    first, second = loaded(tmp_path, "abc" * 100), loaded(tmp_path, "cax" * 50)
    both = validated_on(first, second)
    assert both.alphabet == "abcx"
    vocab = Vocab("xcba")
    assert vocab.decode(both.table(vocab)[both.validation]) == "cax" * 50
    assert vocab.decode(both.table(vocab)[both.train]) == "abc" * 100
    assert both.summary()["validation"]["sha256"] == second.sha256


def test_a_tail_in_another_script_is_noticed(tmp_path: Path, english: str) -> None:
    chinese = "".join(chr(0x4E00 + (code * code) % 3000) for code in range(7_000))
    distance = tail_differs(loaded(tmp_path, english[:30_000] * 2 + chinese))
    assert distance is not None
    assert distance > 0.9
    assert tail_differs(divided(loaded(tmp_path, english[:30_000] * 2 + chinese), 0.1, "blocks")) is None


def test_ordinary_tails_are_not(tmp_path: Path, english: str) -> None:
    chinese = "".join(chr(0x4E00 + int(code)) for code in np.random.default_rng(0).zipf(1.3, 36_000) % 3000)
    languages = "".join(a + b for a, b in pairwise([english[:4000], chinese[:4000]] * 6))
    for text in (english, english[:20_000], chinese, languages, "ab" * 5000):
        assert tail_differs(loaded(tmp_path, text)) is None

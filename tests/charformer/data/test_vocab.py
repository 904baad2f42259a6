import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charformer.data.vocab import Vocab
from charformer.errors import UserError

any_text = st.text()  # NUL and unassigned code points too


@given(any_text)
def test_encoding_is_undone_by_decoding_and_json(text: str) -> None:
    vocab = Vocab.of(text)
    assert list(vocab.characters) == sorted(set(text))
    assert vocab.decode(vocab.encode(text)) == text
    again = Vocab.from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert again.characters == vocab.characters


@given(any_text, any_text)
def test_an_extension_keeps_every_id(old: str, new: str) -> None:
    vocab = Vocab.of(old)
    extended = vocab.extended(new)
    np.testing.assert_array_equal(extended.encode(old), vocab.encode(old))
    assert extended.decode(extended.encode(new)) == new
    added = extended.characters[len(vocab) :]
    assert list(added) == sorted(set(new) - set(old))


def test_unknown_characters_are_named() -> None:
    vocab = Vocab.of("abc")
    assert vocab.unknown("aé😀b") == "é😀"
    with pytest.raises(UserError, match=r"U\+00E9.*U\+1F600"):
        vocab.encode("aé😀b")
    assert "a" in vocab
    assert "é" not in vocab


@pytest.mark.parametrize("codes", [None, "ab", 97, [97, 97], [-1], [0x110000], [0xD800], [True], [1.5]], ids=str)
def test_a_broken_vocabulary_is_refused(codes: object) -> None:
    with pytest.raises(UserError):
        Vocab.from_dict({"code_points": codes})


@pytest.mark.parametrize("values", [None, [], {}], ids=str)
def test_anything_but_a_vocabulary_is_refused(values: object) -> None:
    with pytest.raises(UserError):
        Vocab.from_dict(values)

from charformer.data import sources

PLAY = """\
# A Play

## ACT I

### SCENE I. A place.

_Enter two
people_

**First Citizen**
Before we proceed, hear
me _aside_ speak.

_Shouts within_

And go on\\. \\& so.

**All**
_\\[Dying]_

**SECOND \\[Citizen\\]**
_Exit_ Speak\\!

_Burthen _\\[dispersedly, within_

## ACT II
"""


def test_speeches_are_parsed_out_of_markdown() -> None:
    assert sources.speeches(PLAY) == [
        "First Citizen:\nBefore we proceed, hear\nme  speak.\nAnd go on. & so.\n\n",
        "SECOND [Citizen]:\nSpeak!\n\n",
    ]


def test_the_plays_are_tiny_shakespeare_s() -> None:
    text = sources.shakespeare_plays()
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n")
    assert 1_150_000 < len(text) < 1_250_000
    assert not set(text) & set("_*\\#<>")
    starts = [
        "Now is the winter of our discontent",
        "Old John of Gaunt",
        "Gregory, o' my word",
        "I wonder how the king",
    ]
    starts += ["If you shall chance, Camillo", "Escalus.", "I'll pheeze you", "Boatswain!"]
    places = [text.index(line) for line in starts]
    assert places == sorted(places)


def test_the_python_reference_has_its_statements() -> None:
    text = sources.python_docs()
    assert 'The "assert" statement' in text
    assert len(text) > 300_000

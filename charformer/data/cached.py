"""The recovery of a run's text from the summary in its config.json."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from charformer.data import corpus as corpora
from charformer.data.corpus import STAND_INS, Corpus, OnProgress
from charformer.data.division import divided, validated_on
from charformer.data.text_files import Text, TextFile, checked_encoding
from charformer.errors import UserError


def find_cached(summary: dict[str, Any], on_progress: OnProgress = lambda *_: None) -> Corpus | None:
    """Return the text that config.json describes, if it is in the cache or unchanged in its old place; else None.

    Raises UserError if the cache lacks the text's division and cannot take it.
    """
    corpus = _undivided(summary, on_progress)
    return divided_like(corpus, summary, on_progress) if corpus else None


def load_again(
    places: Sequence[str],
    summary: dict[str, Any],
    encoding: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Return the text of ``places`` as the run whose config.json describes it reads it: its encoding, its division.

    A text that is not the run's is returned as it is. ``encoding`` replaces the recorded one.

    Raises UserError for a text that cannot be used, or if the run's validation text is no longer available.
    """
    corpus = corpora.load(places, on_progress, encoding or str(summary.get("encoding", "utf-8")), notice)
    if corpus.sha256 != summary.get("sha256"):
        return corpus
    if (as_before := divided_like(corpus, summary, on_progress)) is None:
        raise UserError("the run's validation text is neither in the cache nor in its old place")
    return as_before


def divided_like(corpus: Corpus, summary: dict[str, Any], on_progress: OnProgress = lambda *_: None) -> Corpus | None:
    """Return ``corpus`` with the validation split that config.json describes; None if its text is not available."""
    recorded = summary.get("validation")
    if not isinstance(recorded, dict):
        return corpus
    if "sha256" in recorded:
        other = _undivided(recorded, on_progress)
        return validated_on(corpus, other) if other else None
    share, split = recorded.get("share"), recorded.get("split")
    if not (isinstance(share, float) and 0 < share < 1 and (split == "tail" or split == "blocks")):
        return None
    return divided(corpus, share, split)


def _undivided(summary: dict[str, Any], on_progress: OnProgress) -> Corpus | None:
    name, source, sha256 = summary.get("name"), summary.get("source"), str(summary.get("sha256"))
    sources: list[Any] = source if isinstance(source, list) else [source]
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # a config.json is untrusted, and this is part of a path below
        return None
    if not (isinstance(name, str) and sources and all(isinstance(entry, str) for entry in sources)):
        return None
    try:
        encoding = checked_encoding(str(summary.get("encoding", "utf-8")))
        alphabet, ids = corpora.cached(sha256)
        if ids is None:
            text = Text(name, _files(name, sources, sha256), encoding)
            if not text.files or text.sha256() != sha256:  # check an unknown file before copying it to the cache
                return None
            found = corpora.encoded(text, on_progress)
            alphabet, ids = found.alphabet, found.ids
        return Corpus(name, source if isinstance(source, list) else sources[0], sha256, alphabet, ids, encoding)
    except (UserError, OSError, ValueError):  # ValueError: a path that contains NUL
        return None


def _files(name: str, sources: list[str], sha256: str) -> list[TextFile]:
    """Return a text's files; none unless all paths exist and are files, as those of an untrusted run may not be."""
    if name in STAND_INS:
        return [corpora.stand_in_file(name)]
    download = corpora.cache_folder() / f"{sha256}.txt"
    paths = [download] if download.is_file() else [Path(source) for source in sources]
    return [TextFile.of(path) for path in paths] if all(path.is_file() for path in paths) else []

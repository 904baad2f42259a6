"""The choice of the characters to validate on: the end of a text, blocks from all over it, or another text."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from charformer.data.corpus import Corpus, Ids, Split, ids_path, read_ids
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.files import atomic_path

MAX_BLOCKS = 20
BLOCK_CHARACTERS = 4096  # the minimum, if the validation share is long enough for two such blocks
COUNTED = 100_000  # about how many characters of each tenth of a text are counted to compare the tenths
UNLIKE = 0.15  # the excess of the total variation between tail and rest over what is usual for tenths of the text


def divided(corpus: Corpus, share: float, split: Split) -> Corpus:
    """Return ``corpus`` with a new share for validation: its tail, or blocks from all over it, moved to its end.

    Raises UserError unless the share is between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"`validation_share` is {share}; it must lie between 0 and 1")
    if split == "blocks":
        corpus = replace(corpus, ids=_blocks_last(corpus, share))
    return replace(corpus, share=share, split=split)


def validated_on(corpus: Corpus, other: Corpus) -> Corpus:
    """Return ``corpus`` with all of it for training and ``other``, whose ids are copied in memory, for validation."""
    alphabet = corpus.alphabet + "".join(sorted(set(other.alphabet) - set(corpus.alphabet)))
    table = Vocab(alphabet).encode(other.alphabet).astype(np.min_scalar_type(len(alphabet) - 1))
    same = replace(other, alphabet=alphabet, ids=table[other.ids])
    return replace(corpus, alphabet=alphabet, validation_text=same)


def tail_differs(corpus: Corpus) -> float | None:
    """Return how much a tail's characters differ from the rest: the share that is out of proportion, from 0 to 1.

    This is the total variation distance between the two distributions of characters. The result is None if the other
    tenths of the text differ about as much from their rests, or if the tail is not the validation split.
    """
    if corpus.split != "tail" or corpus.validation_text or len(corpus.ids) < 1000:
        return None
    ends = np.linspace(0, len(corpus.ids), 11).astype(int)
    counts = np.stack(
        [
            np.bincount(corpus.ids[a:b][:: 1 + (b - a) // COUNTED], minlength=len(corpus.alphabet))
            for a, b in pairwise(ends)
        ]
    )
    rests = counts.sum(axis=0) - counts
    shares, rest_shares = (table / table.sum(axis=1, keepdims=True) for table in (counts, rests))
    distances = abs(shares - rest_shares).sum(axis=1) / 2
    return float(distances[-1]) if distances[-1] > np.median(distances[:-1]) + UNLIKE else None


def _blocks_last(corpus: Corpus, share: float) -> Ids:
    """Return the ids of ``corpus`` with the blocks for validation moved to the end, (len(ids),), from the cache.

    The text is cut into stretches, and the end of each stretch is such a block.
    """
    characters = len(corpus.ids)
    held = characters - int((1 - share) * characters)
    count = max(1, min(MAX_BLOCKS, held // 2, max(2, held // BLOCK_CHARACTERS)))
    ends = np.linspace(0, characters, count + 1).astype(int)[1:]
    sizes = np.diff(np.linspace(0, held, count + 1).astype(int))
    starts = np.concatenate([[0], ends[:-1]])
    parts = [*zip(starts, ends - sizes, strict=True), *zip(ends - sizes, ends, strict=True)]
    path = ids_path(f"{corpus.sha256}-blocks-{share!r}")  # another way to divide would need another name
    if (ids := read_ids(path, characters, corpus.alphabet)) is not None:
        return ids
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": corpus.ids.dtype.str, "fortran_order": False, "shape": (characters,)}
        np.lib.format.write_array_header_2_0(file, header)
        for start, end in parts:
            file.write(corpus.ids[start:end].data)
    return np.load(path, mmap_mode="r")

"""Exports a run to a verified .onnx file, which holds all that sampling needs."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from charformer.config import ModelConfig
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab, describe
from charformer.errors import UserError
from charformer.files import atomic_path
from charformer.runs.folder import RunDir, combined_sha256, table_sha256
from charformer.runs.tensors import Tensors
from charformer.sampling.engine import Ids
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description, sealed
from charformer.sampling.speculation import MAX_CHARACTERS, Draft
from export.graph import PRECISIONS, Precision, fused
from export.portable import portable as portable_graph
from export.verify import CHARACTERS, Comparison, compare, reference_logits

MAX_LOGIT_ERROR = 1e-4  # of an fp32 file
MAX_LOSS = 0.01  # nats a character that a smaller file may cost without a warning


@dataclass(frozen=True)
class Export:
    """A report on the file that was written."""

    path: Path
    bytes: int
    precision: str
    portable: bool
    text: str
    on_text: bool
    comparison: Comparison

    @property
    def costs_too_much(self) -> bool:
        """Return whether the file's loss deserves a warning; a loss on random characters does not."""
        return self.on_text and self.comparison.loss - self.comparison.checkpoint_loss > MAX_LOSS


def export(
    run: RunDir, out: Path, precision: str, portable: bool, corpus: Corpus | None, which: str = "best"
) -> Export:
    """Write the model of ``run``, with its best or last weights, to ``out``, and check it on ``corpus``.

    Without a corpus, it is checked on random ids.

    Raises UserError if the run cannot be read, ``out`` cannot be written, or the file does not match the checkpoint;
    the previous file then stays.
    """
    config, vocab = run.read_shape()
    tensors, metadata = run.read_weights(config, which)
    ngram = run.read_ngram(config)
    if corpus is not None and min(len(corpus.train), len(corpus.validation)) < 2:
        raise UserError(f"{corpus.name} is too short to check an export on; take a text of some hundred characters")
    draft = None
    if corpus is not None:
        if unknown := vocab.unknown(corpus.alphabet):
            raise UserError(
                f"{corpus.name} has characters that the run has not: {describe(unknown)}; take another text"
            )
        if ngram is None:
            draft = Draft.of(corpus.table(vocab)[corpus.train[:MAX_CHARACTERS]], len(vocab))
    sha256 = combined_sha256(metadata["sha256"], table_sha256(ngram))
    description = Description(config, vocab, precision, portable, sha256, draft, ngram)
    with atomic_path(out) as temporary, np.errstate(all="ignore"):  # the comparison finds overflows
        temporary.touch()  # before the work, so that an unwritable folder is reported at once
        temporary.write_bytes(file_content(description, tensors, PRECISIONS[precision]))
        ids = _windows(config, vocab, corpus)
        wanted = reference_logits(config, tensors, ids[:, :-1], ngram)
        comparison = compare(OnnxEngine(temporary), ids, wanted)
        if not math.isfinite(comparison.max_logit_error):
            raise UserError(f"{precision} is too coarse for these weights: logits overflow; take `precision` fp32")
        if precision == "fp32" and comparison.max_logit_error > MAX_LOGIT_ERROR:
            raise UserError(
                f"the file's logits are off by {comparison.max_logit_error:.1e}, more than {MAX_LOGIT_ERROR:.0e}; "
                f"{out} was not written"
            )
        size = temporary.stat().st_size
    text = f"characters of {corpus.name}'s validation split" if corpus is not None else "random characters"
    return Export(out, size, precision, portable, text, corpus is not None, comparison)


def file_content(description: Description, tensors: Tensors, precision: Precision) -> bytes:
    """Return the bytes of a .onnx file that passes onnx's own checker."""
    build = portable_graph if description.portable else fused
    model = build(description.config, tensors, precision)
    onnx.helper.set_model_props(model, description.to_metadata())
    onnx.checker.check_model(model)
    return sealed(model.SerializeToString())


def _windows(config: ModelConfig, vocab: Vocab, corpus: Corpus | None) -> Ids:
    """Return (N, T + 1) ids, evenly spread over the validation split, about CHARACTERS in all; random without a text.

    Where the context slides, T is long enough for it to do so.
    """
    length = config.block_size + 1 if not config.rope_base else 2 * config.cache_size
    count = max(3, CHARACTERS // length)  # one for each way to read it
    if corpus is None:
        return np.random.default_rng(0).integers(len(vocab), size=(count, length))
    split = corpus.validation
    length = min(length, len(split))
    count = min(count, len(split) // length)
    starts = np.linspace(0, len(split) - length, count).astype(np.int64)
    return corpus.table(vocab)[split[starts[:, None] + np.arange(length)]]

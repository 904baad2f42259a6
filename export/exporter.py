"""Exports a run to a verified .onnx file, which holds all that sampling needs."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from charformer.config import ModelConfig
from charformer.data import corpus as corpora
from charformer.data.cached import find_cached
from charformer.data.corpus import Corpus, OnProgress
from charformer.data.vocab import Vocab, describe
from charformer.errors import UserError
from charformer.files import atomic_path
from charformer.runs.folder import RunDir, combined_sha256, table_sha256
from charformer.runs.tensors import Tensors
from charformer.sampling.engine import Ids
from charformer.sampling.onnx_engine import OnnxEngine
from charformer.sampling.onnx_format import Description, is_sealed, sealed
from charformer.sampling.speculation import MAX_CHARACTERS, Draft
from export.graph import PRECISIONS, Precision, fused
from export.portable import portable as portable_graph
from export.verify import CHARACTERS, Comparison, compare, reference_logits

MAX_LOGIT_ERROR = 1e-4  # of an fp32 file
MAX_LOSS = 0.01  # nats a character that a smaller file may cost without a warning

log = logging.getLogger("charformer")


@dataclass(frozen=True)
class Export:
    """A report on the file that was written."""

    path: Path
    bytes: int
    precision: str
    portable: bool
    weights: str
    text: str
    on_text: bool
    comparison: Comparison

    @property
    def costs_too_much(self) -> bool:
        """Return whether the file's loss deserves a warning; a loss on random characters does not."""
        return self.on_text and self.comparison.loss - self.comparison.checkpoint_loss > MAX_LOSS


def find_text(run: RunDir, data: str | None, on_progress: OnProgress = lambda *_: None) -> Corpus | None:
    """Return the text to check an export of ``run`` on: ``data``, a file or a name, or by default the run's own.

    If the run's own is not there any more, log a warning and return None. Raises UserError if ``data`` cannot be read.
    """
    if data is not None:
        return corpora.load(data, on_progress)
    recorded = run.read_section("corpus")
    corpus = find_cached(recorded, on_progress)
    if corpus is None:
        lacks = "" if run.ngram.exists() else " and has no draft for speculative sampling"
        log.warning(
            "%s is not there any more, so the file is checked on random characters%s; `charformer-export --data` "
            "names another text",
            recorded.get("source"),
            lacks,
        )
    return corpus


def export(
    run: RunDir, out: Path, precision: str, portable: bool, corpus: Corpus | None, which: str = "best"
) -> Export:
    """Write the model of ``run``, with its best or last weights, to ``out``, and check it on ``corpus``.

    Without a corpus, it is checked on random ids. Fewer than 32 bits cost accuracy: a loss on the corpus that rises by
    more than MAX_LOSS is logged as a warning.

    Raises UserError if the run cannot be read, ``out`` cannot be written or is another program's file, logits are not
    finite, or those of an fp32 file do not match the checkpoint; the previous file then stays.
    """
    config, vocab = run.read_shape()
    check_out(out, run)
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
    done = Export(out, size, precision, portable, which, text, corpus is not None, comparison)
    if done.costs_too_much:
        lost, better = comparison.loss - comparison.checkpoint_loss, "fp32" if precision == "int8" else "int8"
        log.warning("%s costs %.4f nats a character, more than %s; %s costs less", precision, lost, MAX_LOSS, better)
    return done


def check_out(out: Path, run: RunDir) -> None:
    """Raise UserError if ``out`` exists and is neither an export nor the run's own model.onnx, even a damaged one."""
    if not out.exists():
        return
    if not out.is_file():
        raise UserError(f"{out} is not a file; `out` needs the name of one")
    try:
        is_ours = not out.stat().st_size or out.resolve() == run.onnx.resolve() or is_sealed(out)
    except OSError as error:
        raise UserError(f"cannot read {out}, which exists: {error.strerror}; choose another `out`") from error
    if not is_ours:
        raise UserError(f"{out} exists and is not a file that charformer-export wrote; choose another `out`")


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

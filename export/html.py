"""Writes a page that samples a .onnx file in a browser, without a network or a server, and shows facts of its run.

The page's own HTML, CSS and JavaScript are in export/page/, one file per concern; their text is inlined here as it
stands, without the modules' imports and exports.
"""

import base64
import gzip
import html
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnx

import charformer
from charformer.config import ModelConfig
from charformer.data.ngram import ARRAYS
from charformer.errors import UserError
from charformer.files import atomic_path
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_metadata
from charformer.sampling.onnx_format import Description, padded_width, unsealed
from charformer.sampling.speculation import ORDER, PROPOSALS, STEPS_PER_NAT
from export import runtime
from export.exporter import Export

ASSETS = Path(__file__).with_name("page")
# Each comes after those that it imports from, since together they are one script.
MODULES = ("noise", "sampler", "draft", "ngram", "engine", "stop", "writer", "vocab", "text", "chart", "app")
LOSSES = {"step": "step", "characters": "characters", "train": "train_loss", "validation": "val_loss"}
MARK = b'<p class="kicker">charformer</p>'  # in page.html, after the style
FROZEN = {"none": "", "attention": ", attention frozen", "trunk": ", trunk frozen", "all": ", nothing trained"}


@dataclass(frozen=True)
class Page:
    """A report on the page: its size, and how much of it belongs to the model and its tables, and to the runtime."""

    path: Path
    bytes: int
    model_bytes: int
    runtime_bytes: int


def check_page(out: Path, file: Path, precision: str, portable: bool) -> None:
    """Raise UserError, before the export to ``file``, if its page cannot be written to ``out``."""
    if precision == "fp16":
        raise UserError("`html` does not go with `precision` fp16, which is for CUDA; take int8, int4 or fp32")
    if portable:
        raise UserError("`html` does not go with `portable`: the page has onnxruntime's own operators")
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is not a file; `html` needs the name of one")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} for the page")
    if out.resolve() == file.resolve():
        raise UserError(f"{out} is the name of the .onnx file; choose another `html`")
    if out.exists() and not _is_page(out):
        raise UserError(f"{out} exists and is not a page of ours; choose another `html`")


def _is_page(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return MARK in file.read(1 << 14)  # the style is half as long
    except OSError as error:
        raise UserError(f"cannot read {path}, which exists: {error.strerror}; choose another `html`") from error


def write_page(run: RunDir, done: Export, out: Path) -> Page:
    """Write the page of a file that was just exported from ``run``. Raises UserError if that is impossible."""
    content = unsealed(done.path.read_bytes())
    model = onnx.load_from_string(content)
    description = Description.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    del model.metadata_props[:]  # the page has them as JSON and bytes
    files = [_packed(part) for part in (model.SerializeToString(), draft_bytes(description), ngram_bytes(description))]
    runtime_files = [_packed(runtime.read(name)) for name in (runtime.SCRIPT, runtime.WASM)]
    title = str(run.read_section("corpus").get("name", "charformer")).removesuffix(".txt")
    text = Template((ASSETS / "page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        lead=html.escape(_lead(description.config)),
        style=(ASSETS / "style.css").read_text("utf-8"),
        script=script(),
        facts=_facts(run, description, done),
        version=charformer.__version__,
        runtime_version=runtime.VERSION,
        description=json.dumps(_description(run, description)).replace("<", "\\u003c"),
        runtime_script=runtime_files[0],
        runtime_wasm=runtime_files[1],
        model=files[0],
        draft=files[1],
        ngram=files[2],
    )
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return Page(out, len(text.encode()), sum(map(len, files)), sum(map(len, runtime_files)))


def script() -> str:
    """Return the page's modules as one script."""
    parts = [(ASSETS / f"{name}.js").read_text("utf-8") for name in MODULES]
    return re.sub(r'^import .* from "\./\w+\.js";\n|^export ', "", "\n".join(parts), flags=re.MULTILINE)


def _packed(content: bytes) -> str:
    """Return ``content`` as a browser can unpack it: base64 of gzip, the same for the same bytes."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def draft_bytes(description: Description) -> bytes:
    """Return the bytes of the draft: its keys, then its rows."""
    draft = description.draft
    return b"" if draft is None else draft.keys.astype("<i8").tobytes() + draft.rows.tobytes()


def ngram_bytes(description: Description) -> bytes:
    """Return the bytes of the n-gram prior's table: its arrays, one after the other."""
    table = description.ngram
    if table is None:
        return b""
    return b"".join(
        table.arrays[name].astype(np.dtype(kind).newbyteorder("<")).tobytes() for name, kind in ARRAYS.items()
    )


def _description(run: RunDir, description: Description) -> dict[str, Any]:
    """Return the facts about the model that the page's script reads."""
    config, draft, ngram = description.config, description.draft, description.ngram
    drafted = counted = None
    if draft is not None:
        drafted = {"rows": len(draft.keys), "order": ORDER, "stepsPerNat": STEPS_PER_NAT}
    if ngram is not None:
        counted = {"contexts": len(ngram.arrays["children"]), "ngrams": len(ngram)}
    return {
        "model": config.to_dict(),
        "cacheSize": config.cache_size,
        "headWidth": padded_width(config),
        "codePoints": description.vocab.to_dict()["code_points"],
        "proposals": PROPOSALS if description.proposer else 0,
        "draft": drafted,
        "ngram": counted,
        "losses": [{key: row[name] for key, name in LOSSES.items()} for row in _evaluations(run)],
    }


def _evaluations(run: RunDir) -> list[dict[str, Any]]:
    """Return the rows of the run's metrics whose numbers JSON can hold; a diverged training has others too."""
    return [row for row in run.read_metrics() if all(math.isfinite(row[name]) for name in LOSSES.values())]


def _last_step(run: RunDir) -> object:
    """Return the step of the last weights, which may lie between two evaluations; None if their file does not say."""
    try:
        return json.loads(read_metadata(run.state)["counters"])["step"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in config.weight_shapes().values())


def _lead(config: ModelConfig) -> str:
    millions = f"{_parameters(config) / 1e6:.1f} million" if _parameters(config) >= 1e6 else f"{_parameters(config):,}"
    return (
        f"A small GPT of {millions} parameters that learned from this text to write one character after another. "
        "It runs in this page, on this device."
    )


def _facts(run: RunDir, description: Description, done: Export) -> str:
    """Return the rows of the page's list of facts."""
    values, corpus, config = run.read_config(), run.read_section("corpus"), description.config
    length = corpus.get("characters")
    facts = {"Text": f"{corpus.get('name')}" + (f", {length:,} characters" if isinstance(length, int) else "")}
    if values.get("preset"):
        facts["Preset"] = f"{values['preset']}"
    if values.get("stage") == "finetune":
        facts["Fine-tune"] = f"from {values.get('init_from')}{FROZEN.get(str(values.get('freeze')), '')}"
    facts["Model"] = (
        f"{config.n_layer} blocks, {config.n_head} heads, {config.n_embd} wide, "
        f"context {config.block_size}, {config.vocab_size} characters"
    )
    if description.ngram is not None:
        facts["Counts"] = f"{len(description.ngram):,} n-grams of up to {description.ngram.order + 1} characters"
    facts["Parameters"] = f"{_parameters(config):,}"
    rows = _evaluations(run)
    if done.weights == "last":
        rows = [row for row in rows if row["step"] == _last_step(run)]
    if rows:
        row = min(rows, key=lambda row: row["val_loss"])
        facts["Trained"] = f"{row['step']:,} steps, {row['characters']:,} characters"
        facts["Validation"] = f"{row['val_loss']:.3f} nats a character, estimated"
    facts["Precision"] = (
        f"{done.precision}, KL divergence from the checkpoint {done.comparison.kl:.1e} nats a character"
    )
    facts["Weights"] = f"SHA-256 {description.weights_sha256[:16]}…"
    return "\n".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())

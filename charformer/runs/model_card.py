"""The model card of a run: a README.md with the Hugging Face Hub's metadata, so that the folder can be uploaded."""

import math
import re
from contextlib import suppress
from typing import Any

from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord

# Constants alone: nothing that a user named can break the YAML. A licence and a language are the user's to add.
METADATA = """\
---
library_name: charformer
pipeline_tag: text-generation
tags:
- charformer
- character-level
- gpt
---
"""
SAMPLING = """\
## How to sample

With charformer installed, in this folder:

```
charformer-sample --run . --temperature 0.8 --seed 1
charformer-sample --run . --onnx
```

In Python:

```python
import charformer

model = charformer.load(".")
print(model.generate(max_new_tokens=200, temperature=0.8, seed=1))
```
"""


def model_card(
    record: RunRecord,
    rows: list[dict[str, Any]],
    sample: str = "",
    val_loss: float | None = None,
    scored_characters: int | None = None,
) -> str:
    """Return the model card of a run in Markdown.

    Args:
        rows: the evaluations so far, as ``RunDir.read_metrics`` returns them.
        sample: a text by the best weights; empty if there is none yet.
        val_loss: their loss over the validation split, in nats per character; None if it was not scored.
        scored_characters: the number of characters in that mean.
    """
    best = min(rows, key=lambda row: row["val_loss"], default=None)
    last = rows[-1] if rows else None
    losses = []
    if best is not None:
        losses = [("training, estimated", best["train_loss"]), ("validation, estimated", best["val_loss"])]
    if val_loss is not None:
        losses.append((f"validation, {scored_characters:,} characters", val_loss))
    parts = [
        METADATA,
        f"# A character-level GPT trained on {code(record.corpus.get('name'))}\n",
        "It continues a prompt one character at a time, in the style of that text.\n",
        "## Training\n",
        "".join(f"- {line}\n" for line in _facts(record, best, last)),
        "## Losses\n",
        "Means per character, by the best weights on validation (`model.safetensors`). An estimate is the mean over a "
        "fixed\nsubset.\n",
        "| | nats | bits |\n|---|---|---|\n"
        + "".join(f"| {name} | {loss:.4f} | {loss / math.log(2):.4f} |\n" for name, loss in losses),
        SAMPLING,
        *(["## A sample\n", block(sample)] if sample else []),
        "## What these files reveal of the text\n",
        "".join(f"- {line}\n" for line in _revealed(record)),
    ]
    return "\n".join(parts)


def _facts(record: RunRecord, best: dict[str, Any] | None, last: dict[str, Any] | None) -> list[str]:
    shape = record.model
    facts = [f"Text: {_text(record.corpus)}."]
    if record.init_from:
        frozen = "" if record.freeze == "none" else f", with {code(record.freeze)} frozen"
        facts.append(f"Fine-tuned from the run {code(record.init_from)}{_trained_on(record.init_from)}{frozen}.")
    parameters = sum(math.prod(size) for size in shape.weight_shapes().values())
    prior = f", n-gram prior of order {shape.ngram_order}" if shape.ngram_order else ""
    if best is not None and last is not None:
        facts.append(
            f"Best weights: those of step {best['step']:,} of the {last['step']:,} taken, after {best['characters']:,} "
            "characters."
        )
    return [
        *facts,
        f"Model: `n_layer` {shape.n_layer}, `n_head` {shape.n_head}, `n_embd` {shape.n_embd}, `block_size` "
        f"{shape.block_size}, {shape.vocab_size:,} distinct characters{prior}; {parameters:,} parameters.",
        f"Preset {code(record.preset)}; `config.json` has every value.",
        f"Versions: {', '.join(f'{code(name)} {code(value)}' for name, value in record.versions.items())}.",
    ]


def _text(corpus: dict[str, Any]) -> str:
    count = corpus.get("characters")
    size = f", {count:,} characters" if isinstance(count, int) else ""
    return f"{code(corpus.get('name'))}{size}, SHA-256 {code(corpus.get('sha256'))}"


def _trained_on(folder: str) -> str:
    with suppress(UserError):  # the run may be gone
        return f", which was trained on {_text(RunRecord.read(RunDir(folder)).corpus)}"
    return ""


def _revealed(record: RunRecord) -> list[str]:
    revealed = [
        "Any model can repeat passages of its text, word for word.",
        "`vocab.json` lists every distinct character of the text.",
        "`config.json` has the name of the text, the place where it was on the machine that trained, and its SHA-256, "
        "by which anybody who has the same text recognizes it.",
        "`last.safetensors` serves only to resume the training, so it need not be shared.",
    ]
    if order := record.model.ngram_order:
        least = record.training.ngram_min_count
        counted = {
            "both": f"the text and of {code(record.counted_corpus.get('name'))}",
            "old": f"the text that {code(record.init_from)} was trained on",
        }.get(record.counted, "the text")
        rare = f"; n-grams that occur fewer than {least} times are left out" if least > 1 else ""
        revealed.append(
            f"**`ngram.safetensors` holds fragments of {counted}** of up to {order + 1} characters, and so does "
            f"`model.onnx`. Whoever has the table can read some of the text{rare}."
        )
    else:
        revealed.append(
            "`model.onnx`, once exported, holds a table of which character follows which three in the text."
        )
    return revealed


def code(value: object) -> str:
    """Return ``value`` as a code span of Markdown, in which nothing is markup, with invisible characters as escapes."""
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(value)
    )
    fence = _fence(text, least=1)
    pad = " " if text[:1] in ("`", " ", "") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str) -> str:
    """Return ``text`` as a fenced block of Markdown."""
    fence = _fence(text, least=3)
    return f"{fence}text\n{text.replace(chr(13), chr(10)).strip(chr(10))}\n{fence}\n"


def _fence(text: str, least: int) -> str:
    """Return backticks, at least ``least`` and more than any run of them in ``text``."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))

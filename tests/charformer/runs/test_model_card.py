"""Test the model card: no name can break its Markdown, and a user's changes are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from charformer.config import ModelConfig, TrainConfig
from charformer.runs.folder import RunDir
from charformer.runs.model_card import METADATA, model_card
from charformer.runs.record import RunRecord

CORPUS: dict[str, Any] = {"name": "novel.txt", "sha256": "ab" * 32, "characters": 12_345}
RECORD = RunRecord("pretrain", "nano", "none", ModelConfig(vocab_size=65), TrainConfig(), CORPUS)
ROWS = [
    {"step": 0, "characters": 0, "train_loss": 4.0, "val_loss": 4.1},
    {"step": 20, "characters": 400, "train_loss": 1.0, "val_loss": 2.0},
    {"step": 40, "characters": 800, "train_loss": 0.5, "val_loss": 3.0},
]
UGLY = [
    "a`b``c|d.txt",
    "---\nlicense: mit\n---",
    "[x](http://e.vil)<script>",
    "# *x* `",
    " ",
    "é\u202e\udc80\x1b[31m",
]


def tokens(card: str) -> list[Token]:
    blocks = MarkdownIt("commonmark").enable("table").parse(card.removeprefix(METADATA))
    return [token for block in blocks for token in (block, *(block.children or []))]


def test_it_says_what_the_run_says() -> None:
    card = model_card(RECORD, ROWS, "\nROMEO:\n```\n", 2.5, 1_234)
    assert card.startswith(METADATA)
    assert "| training, estimated | 1.0000 | 1.4427 |\n| validation, estimated | 2.0000 | 2.8854 |\n" in card
    assert "| validation, 1,234 characters | 2.5000 | 3.6067 |\n" in card
    assert "step 20 of the 40 taken, after 400 characters" in card
    assert "12,345 characters, SHA-256 `" in card
    assert "ngram.safetensors" not in card
    assert "which character follows which three" in card
    assert [token.content for token in tokens(card) if token.info == "text"] == ["ROMEO:\n```\n"]


def test_a_prior_and_a_source_are_named(tmp_path: Path) -> None:
    RECORD.write(RunDir(tmp_path))
    tuned = replace(
        RECORD,
        stage="finetune",
        freeze="attention",
        init_from=str(tmp_path),
        model=ModelConfig(vocab_size=65, ngram_order=7),
        training=TrainConfig(ngram_min_count=5),
        corpus=CORPUS | {"name": "letters.txt"},
    )
    card = model_card(tuned, [])
    assert "which was trained on `novel.txt`, 12,345 characters" in card
    assert "with `attention` frozen" in card
    assert "holds fragments of the text** of up to 8 characters" in card
    assert "fewer than 5 times" in card
    both = model_card(replace(tuned, counted="both", counted_corpus=CORPUS), [])
    assert "holds fragments of the text and of `novel.txt`** of up to 8 characters" in both
    assert "holds fragments of the text that `gone` was trained on**" in model_card(
        replace(tuned, counted="old", init_from="gone"), []
    )
    assert "which character follows which three" not in card, "only a model without a prior has that table"
    assert "run `gone`, with" in model_card(replace(tuned, init_from="gone"), [])


@pytest.mark.parametrize("name", UGLY)
def test_no_name_is_markup(name: str, tmp_path: Path) -> None:
    record = replace(RECORD, preset=name, init_from=name, corpus=CORPUS | {"name": name, "sha256": name})
    card = model_card(record, ROWS, name.replace("\udc80", ""), 1.0, 10)
    plain = model_card(replace(RECORD, init_from="x"), ROWS, "x", 1.0, 10)
    kinds, wanted = ([token.type for token in tokens(each)] for each in (card, plain))
    assert kinds == wanted
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert tokens(card)[1].children[-1].content.strip() == shown.strip()  # type: ignore[index]
    assert card.startswith(METADATA)
    RunDir(tmp_path).write_card(card)
    assert not RunDir(tmp_path).card_is_changed


@pytest.mark.parametrize(
    "change",
    [lambda text: "Mine. " + text, lambda text: text + "\nMine.\n", lambda text: text.replace("<!--", "<!-- my")],
)
def test_a_changed_card_is_kept(tmp_path: Path, change: Any) -> None:
    run = RunDir(tmp_path)
    assert run.write_card("one\n")
    assert run.write_card("two\n")
    run.card.write_text(change(run.card.read_text("utf-8")), encoding="utf-8")
    mine = run.card.read_bytes()
    assert not run.write_card("three\n")
    run.start()
    assert run.card.read_bytes() == mine


def test_a_card_that_nobody_changed_goes_with_its_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_card("one\n")
    run.card.write_bytes(run.card.read_bytes().replace(b"\n", b"\r\n"))  # Git on Windows does that
    run.start()
    assert not run.card.exists()

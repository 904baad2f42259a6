"""Test the n-gram prior in a training: which table predicts a window, resumed runs, and the counts of fine-tunes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charformer.commands import sample
from charformer.config import ModelConfig, TrainConfig
from charformer.data import corpus as corpora
from charformer.data.corpus import Corpus
from charformer.data.ngram_counts import build, count
from charformer.data.vocab import Vocab
from charformer.data.windows import Windows
from charformer.errors import UserError
from charformer.model.freeze import freeze
from charformer.model.gpt import GPT
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.training import prior as priors
from charformer.training.correction import FACTORS
from charformer.training.distributed import ONE_PROCESS
from charformer.training.evaluation import Evaluator
from charformer.training.prior import PriorRows, count_tables
from charformer.training.session import Place, TrainingSession, prepare_finetune, prepare_pretrain, prepare_resume
from export.exporter import export
from tests.charformer.training.test_trainer import assert_same, run_all, weights

CPU = torch.device("cpu")
MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=20, dropout=0.1, rope_base=100.0, ngram_order=4)
TRAIN_CONFIG = TrainConfig(
    batch_size=8, learning_rate=3e-3, max_steps=12, eval_interval=4, eval_batches=2, zero_init=1, ngram_folds=4
)


def pretrain(data: Path, folder: Path, shape: ModelConfig = MODEL) -> TrainingSession:
    session = prepare_pretrain(RunDir(folder), shape, TRAIN_CONFIG, "nano", corpora.load(str(data)), Place(CPU))
    session.open()
    return session


def finetune(
    source: RunDir, data: Path, folder: Path, frozen: str = "none", config: TrainConfig = TRAIN_CONFIG
) -> TrainingSession:
    text = corpora.load(str(data))
    session = prepare_finetune(RunDir(folder), source, config, "nano", frozen, text, Place(CPU))
    session.open()
    return session


def rows_of(data: Path, *, keeps: bool, order: int = 4) -> tuple[PriorRows, Corpus, Vocab]:
    text = corpora.load(str(data))
    vocab = Vocab.of(text.alphabet)
    shape = replace(MODEL, vocab_size=len(vocab), ngram_order=order)
    return PriorRows(count_tables(text, vocab, shape, TRAIN_CONFIG), text, vocab, order, CPU, keeps), text, vocab


def test_a_training_window_s_rows_have_not_counted_its_fold(text_file: Path) -> None:
    prior, text, vocab = rows_of(text_file, keeps=False)
    ids, fold = text.table(vocab)[text.train], len(text.train) // 4
    tables = []
    for held_out in range(4):  # counted again from two texts, which end where the fold begins
        parts = [ids[at * len(ids) // 4 : (at + 1) * len(ids) // 4] for at in range(4) if at != held_out]
        tables.append(build(priors.merged([count(part, len(vocab), 4) for part in parts]), min_gain=0))
    starts = np.array([0, fold - 10, 2 * fold + 7, len(ids) - 21])
    found = prior.rows(prior.for_step(starts, 20)).numpy()
    for start, rows in zip(starts, found, strict=True):
        for offset, row in enumerate(rows):
            place = start + offset
            table = tables[next(k for k in range(4) if place + 1 < (k + 1) * len(ids) // 4)]
            np.testing.assert_array_equal(row, table.row(ids[max(0, place - 3) : place + 1].tolist()))


def test_rows_that_are_kept_are_those_that_are_looked_up(text_file: Path) -> None:
    kept, text, _ = rows_of(text_file, keeps=True)
    looked_up, *_ = rows_of(text_file, keeps=False)
    starts = np.linspace(0, len(text.train) - 21, 60).astype(np.int64)
    step = kept.for_step(starts, 20)
    assert step.dtype == torch.int32
    assert step.shape == (60, 20)
    torch.testing.assert_close(kept.rows(step), looked_up.for_step(starts, 20), rtol=0.02, atol=1e-6)
    out = torch.zeros_like(step)
    assert kept.for_step(starts, 20, out) is out
    assert torch.equal(out, step)


def test_rows_that_are_too_many_to_keep_are_looked_up(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "MAX_ON_DEVICE", 1000)
    prior, *_ = rows_of(text_file, keeps=True)
    assert prior.for_step(np.array([0]), 20).dtype == torch.float32


def test_scored_windows_see_nothing_that_comes_before_them(text_file: Path) -> None:
    prior, text, vocab = rows_of(text_file, keeps=False)
    start = 300
    window = text.table(vocab)[text.validation[start : start + 20]].tolist()
    found = prior.within("validation", np.array([start]), 20)[0].numpy()
    for end in range(20):
        np.testing.assert_array_equal(found[end], prior.tables.whole.row(window[: end + 1]))
    train = prior.within("train", np.array([start]), 20)[0].numpy()
    window = text.table(vocab)[text.train[start : start + 20]].tolist()
    np.testing.assert_array_equal(train[7], prior.tables.folds[0].row(window[:8]))


def test_a_run_starts_from_its_table_and_learns_beyond_it(text_file: Path, tmp_path: Path) -> None:
    session = prepare_pretrain(
        RunDir(tmp_path / "run"),
        MODEL,
        replace(TRAIN_CONFIG, max_steps=100),
        "nano",
        corpora.load(str(text_file)),
        Place(CPU),
    )
    session.open()
    run_all(session.trainer)
    first, *_, last = session.run.read_metrics()
    plain = prepare_pretrain(
        RunDir(tmp_path / "plain"), replace(MODEL, ngram_order=0), TRAIN_CONFIG, "nano", session.corpus, Place(CPU)
    )
    plain.open()
    run_all(plain.trainer)
    assert first["val_loss"] < plain.run.read_metrics()[-1]["val_loss"] - 0.5, "counting knows more than some steps"
    assert last["train_loss"] < first["train_loss"] - 0.01
    assert first["seconds"] > 0, "counting is part of the training's time"
    assert not plain.run.ngram.exists()
    table = session.run.read_ngram(session.model.config)
    assert table is not None
    wanted = build(priors.count_text(session.corpus, session.vocab, 4))
    np.testing.assert_allclose(table.row([5, 6, 7]), wanted.row([5, 6, 7]), atol=2e-3)


def test_a_resumed_run_takes_the_same_steps(text_file: Path, tmp_path: Path) -> None:
    whole = pretrain(text_file, tmp_path / "whole").trainer
    run_all(whole)
    stopped = pretrain(text_file, tmp_path / "stopped").trainer
    list(stopped.steps(lambda: stopped.counters.step == 6))
    run = stopped.run
    before = run.ngram.read_bytes()
    again = prepare_resume(run, RunRecord.read(run), {}, stopped.corpus, Place(CPU))
    again.open()
    run_all(again.trainer)
    assert_same(weights(again.trainer), weights(whole))
    assert run.ngram.read_bytes() == before == whole.run.ngram.read_bytes()


def test_both_engines_write_the_same_text(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = pretrain(text_file, tmp_path / "run")
    run_all(session.trainer)
    result = session.finish()
    texts = []
    for layout in (None, "fused", "portable"):
        flags = ["--run", str(session.run.path)]
        if layout is not None:
            export(session.run, tmp_path / f"{layout}.onnx", "fp32", layout == "portable", session.corpus)
            flags = ["--onnx", str(tmp_path / f"{layout}.onnx")]
        assert sample.main([*flags, "--max-new-tokens", "300", "--seed", "1337", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[-1])["samples"][0])
    assert texts[0] == texts[1] == texts[2]
    assert result.sample[1:250] == texts[0][:249]


def test_evaluations_of_a_frozen_trunk_keep_their_rows(text_file: Path) -> None:
    prior, text, vocab = rows_of(text_file, keeps=False)
    torch.manual_seed(0)
    model = GPT(replace(MODEL, vocab_size=len(vocab)))
    windows = Windows(text.table(vocab), CPU)

    def losses(what: str) -> list[float]:
        freeze(model, what)
        evaluator = Evaluator(model, text, windows, TRAIN_CONFIG, torch.float32, ONE_PROCESS, prior)
        return [evaluator.subset_loss("validation") for _ in range(2)]

    kept, plain = losses("trunk"), losses("none")
    assert kept == pytest.approx(plain, abs=1e-6)


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charformer.data.corpus.cache_folder", lambda: folder / "cache")
        session = pretrain(text_file, folder / "run")
        run_all(session.trainer)
    return session.run


def other_text(tmp_path: Path, words: str, count: int) -> Path:
    r = np.random.default_rng(0)
    path = tmp_path / "other.txt"
    path.write_text(" ".join(r.choice(words.split(), size=count)), encoding="utf-8")
    return path


def test_freezing_all_counts_the_new_text_and_trains_nothing(base: RunDir, tmp_path: Path) -> None:
    data = other_text(tmp_path, "zero öne twö three föur", 3000)
    session = finetune(base, data, tmp_path / "run", "all")
    before = weights(session.trainer)
    learned = load_model(base)[0].head.weight
    shares = [factor for factor in FACTORS if torch.equal(before["head.weight"][: len(learned)], factor * learned)]
    assert len(shares) == 1
    assert shares[0] < 1, "the words are others, so their correction is not all of the old one"
    assert [step.step for step in run_all(session.trainer)] == [0]
    assert session.trainer.is_finished
    assert_same(weights(session.trainer), before)
    assert session.record.counted == "new"
    assert session.run.read_metrics()[0]["val_loss"] < 1, "which no model of the old text comes near"
    session.finish()
    resumed = prepare_resume(session.run, RunRecord.read(session.run), {}, session.corpus, Place(CPU))
    resumed.open()
    assert run_all(resumed.trainer) == []
    assert_same(weights(resumed.trainer), before)


def test_a_frozen_trunk_trains_the_gate_and_not_the_input_map(base: RunDir, tmp_path: Path) -> None:
    session = finetune(base, other_text(tmp_path, "to be or not", 3000), tmp_path / "run", "trunk")
    before = weights(session.trainer)
    run_all(session.trainer)
    after = weights(session.trainer)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {f"{name}.{part}" for name in ("head", "ln_f", "ngram_prior.gate") for part in ("weight", "bias")}


def test_a_short_text_of_the_old_one_s_kind_is_counted_with_it(base: RunDir, text_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "short.txt"
    data.write_text(text_file.read_text("utf-8")[3000:3900], encoding="utf-8")
    session = finetune(base, data, tmp_path / "run")
    assert session.record.counted == "both"
    list(session.trainer.steps(lambda: session.trainer.counters.step == 3))
    resumed = prepare_resume(session.run, RunRecord.read(session.run), {}, session.corpus, Place(CPU))
    assert resumed.trainer.prior is not None
    assert session.trainer.prior is not None
    tables = [prior.tables.folds[1].arrays for prior in (resumed.trainer.prior, session.trainer.prior)]
    assert all(np.array_equal(tables[0][name], tables[1][name]) for name in tables[0])


def test_a_private_text_s_minimum_count_holds_for_the_tables_of_its_fine_tunes(text_file: Path, tmp_path: Path) -> None:
    text = text_file.read_text("utf-8")
    data, short = tmp_path / "private.txt", tmp_path / "short.txt"
    data.write_text(text[:2000] + "my secret: xyzzy" + text[2000:], encoding="utf-8")
    short.write_text(text[3000:3900], encoding="utf-8")
    careful = replace(TRAIN_CONFIG, ngram_min_count=3)
    source = prepare_pretrain(RunDir(tmp_path / "a"), MODEL, careful, "nano", corpora.load(str(data)), Place(CPU))
    source.open()
    run_all(source.trainer)
    session = finetune(source.run, short, tmp_path / "b")
    assert session.record.counted == "both"
    assert session.record.training.ngram_min_count == 3
    for run in (source.run, session.run):
        table = run.read_ngram(run.read_shape()[0])
        assert table is not None
        assert table.row(session.vocab.encode("xyz").tolist())[session.vocab.encode("z")[0]] < 0.1


def test_a_fine_tune_is_resumed_with_the_text_that_it_counted(base: RunDir, text_file: Path, tmp_path: Path) -> None:
    source = RunDir(shutil.copytree(base.path, tmp_path / "source"))
    data = tmp_path / "short.txt"
    data.write_text(text_file.read_text("utf-8")[3000:3900], encoding="utf-8")
    session = finetune(source, data, tmp_path / "run")
    assert session.record.counted == "both"
    list(session.trainer.steps(lambda: session.trainer.counters.step == 3))
    before = session.run.ngram.read_bytes()
    shutil.rmtree(source.path)
    prepare_resume(session.run, RunRecord.read(session.run), {}, session.corpus, Place(CPU)).open()
    assert session.run.ngram.read_bytes() == before


@pytest.mark.parametrize("characters", [30, 60, 72, 73])
def test_the_tables_of_a_very_short_text_are_compared(characters: int, text_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text("utf-8")[:characters], encoding="utf-8")
    prior, *_ = rows_of(short, keeps=False)
    assert np.isfinite(prior.loss())


def test_where_the_old_text_is_gone_its_table_may_serve(
    base: RunDir, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "short.txt"
    data.write_text(text_file.read_text("utf-8")[3000:3900] + "ß" * 9, encoding="utf-8")
    both = finetune(base, data, tmp_path / "both")
    list(both.trainer.steps(lambda: both.trainer.counters.step == 3))
    monkeypatch.setattr(priors, "find_cached", lambda _: None)
    session = finetune(base, data, tmp_path / "run")
    assert session.record.counted == "old"
    run_all(session.trainer)
    table = session.run.read_ngram(session.model.config)
    assert table is not None
    assert table.vocab_size == len(session.vocab) > base.read_shape()[0].vocab_size
    careful = replace(TRAIN_CONFIG, ngram_min_count=2)
    assert finetune(base, data, tmp_path / "careful", config=careful).record.counted == "new", "which keeps the promise"
    record = RunRecord.read(session.run)
    prepare_resume(
        session.run, replace(record, training=replace(TRAIN_CONFIG, max_steps=14)), {}, session.corpus, Place(CPU)
    )
    with pytest.raises(UserError, match="no longer there"):
        prepare_resume(both.run, RunRecord.read(both.run), {}, both.corpus, Place(CPU))


def test_a_text_of_too_many_characters_has_no_prior(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "many.txt"
    data.write_text("".join(chr(0x3400 + place % 9000) for place in range(10_000)), encoding="utf-8")
    session = pretrain(data, tmp_path / "run")
    assert session.model.ngram_prior is None
    assert "9,000 distinct characters" in caplog.text
    assert session.trainer.prior is None


def test_freezing_all_is_for_models_with_a_prior(trained_run: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves nothing to train"):
        finetune(RunDir(trained_run), text_file, tmp_path / "run", "all")

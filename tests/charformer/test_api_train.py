"""Test charformer.train as a Python program uses it."""

import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import charformer
from charformer import api_train
from charformer.commands import train as command
from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.runs.metrics import Progress
from tests.conftest import TINY

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "batch_size": 8, "ngram_order": 0}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(RunDir(folder))[0].state_dict()


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_trains_what_the_command_trains_and_prints_nothing(
    text_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[Progress] = []
    handler = signal.getsignal(signal.SIGINT)
    run = charformer.train(
        text_file, out=tmp_path / "library", steps=12, eval_interval=6, on_step=steps.append, dtype="float32", **SHAPE
    )
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is handler
    assert [progress.step for progress in steps] == list(range(13))
    flags = ["--data", str(text_file), "--out", str(tmp_path / "command"), "--steps", "12", "--eval-interval", "6"]
    assert command.main([*flags, *TINY, "--dtype", "float32"]) == 0
    assert_same(tmp_path / "library", tmp_path / "command")
    assert (run.out, run.steps, run.characters) == (tmp_path / "library", 12, 12 * 8 * 24)
    assert run.sample == (tmp_path / "command" / "sample.txt").read_text("utf-8")
    assert len(charformer.load(run.out).generate(max_new_tokens=20, seed=1)) == 20


def test_a_second_training_fine_tunes_the_first_in_another_thread(text_file: Path, tmp_path: Path) -> None:
    first = charformer.train(text_file, out=tmp_path / "first", steps=4, **SHAPE)
    found: list[charformer.TrainedRun] = []

    def work() -> None:
        run = charformer.train(text_file, out=tmp_path / "second", init_from=first.out, freeze="attention", steps=3)
        found.append(run)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found[0].steps == 3
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])
    assert RunDir(tmp_path / "second").read_config()["freeze"] == "attention"


def test_an_interrupt_saves_and_resume_ends_as_if_there_had_been_none(text_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_interval": 10, "dtype": "float32", **SHAPE}
    whole = charformer.train(text_file, out=tmp_path / "whole", steps=20, **options)

    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt  # as a notebook's stop button does

    with pytest.raises(KeyboardInterrupt):
        charformer.train(text_file, out=tmp_path / "run", steps=20, on_step=interrupt, **options)
    run = charformer.train(text_file, out=tmp_path / "run", resume=True, dtype="float32")
    assert run.steps == 20
    assert_same(whole.out, run.out)


def test_an_interrupt_does_not_hide_that_nothing_could_be_saved(text_file: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            shutil.rmtree(tmp_path / "run")
            raise KeyboardInterrupt

    with pytest.raises(charformer.UserError, match="was saved in") as raised:
        charformer.train(text_file, out=tmp_path / "run", steps=20, eval_interval=10, on_step=interrupt, **SHAPE)
    rescued = Path(str(raised.value).split("saved in ")[1].removesuffix(" instead"))
    assert charformer.train(text_file, out=rescued, resume=True).steps == 20
    shutil.rmtree(rescued)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself this signal on Windows")
def test_further_interrupts_wait_for_the_thread_too() -> None:
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(time.sleep, 0.5)
        timers = [threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)) for after in (0.1, 0.2)]
        for timer in timers:
            timer.start()
        api_train._wait(done)
        assert done.done()
        for timer in timers:
            timer.join()


def test_a_resumed_run_reads_its_text_as_before(text_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text(text_file.read_text("utf-8") + "é" * 9, encoding="cp1252")
    flags = ["--validation-split", "blocks", "--validation-share", "0.3", "--encoding", "cp1252"]
    run = tmp_path / "run"
    assert command.main(["--data", str(data), "--out", str(run), "--steps", "3", *TINY, *flags]) == 0
    before = RunDir(run).read_section("corpus")
    charformer.train(data, out=run, steps=5, resume=True)
    assert RunDir(run).read_section("corpus") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "`preset` begins a new run"),
        ({"freeze": "all"}, "`freeze` begins"),
        ({"init_from": "nowhere"}, "`init_from` begins"),
        ({"overwrite": True}, "`overwrite` begins"),
    ],
)
def test_what_begins_a_run_is_refused_on_resume(
    options: dict[str, Any], message: str, trained_run: Path, text_file: Path
) -> None:
    with pytest.raises(charformer.UserError, match=message):
        charformer.train(text_file, out=trained_run, resume=True, **options)


def test_a_folder_of_texts_names_its_run(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "poems"
    folder.mkdir()
    shutil.copy(text_file, folder)
    monkeypatch.chdir(folder)
    assert charformer.train(".", steps=2, **SHAPE).out == Path("runs/poems")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepps": 3}, "`stepps` is not a field"),
        ({"preset": "tiny"}, "`preset` is 'tiny'; it can be baseline"),
        ({"freeze": "attention"}, "`freeze` is for fine-tuning"),
        ({"steps": 0}, "`max_steps`"),
        ({"steps": 1e1}, "`max_steps` is 10.0; it must be a whole number"),
        ({"zero_init": True}, "`zero_init` is True; it must be a whole number"),
        ({"init_from": "nowhere"}, "there is no run in nowhere"),
        ({"init_from": ""}, "`init_from` is empty"),
        ({"out": "", "overwrite": True}, "`out` or `init_from` is empty"),
        ({"data": ""}, "a name in `data`"),
        ({"data": []}, "`data` has no text"),
    ],
)
def test_mistakes_name_the_argument_and_leave_nothing(
    options: dict[str, Any], message: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(charformer.UserError, match=message):
        charformer.train(**{"data": text_file, "out": tmp_path / "run"} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepps": 3}, "`stepps` is not a field"),
        ({"vocab_size": 3}, "`vocab_size` is not a field"),
        ({"steps": 50.0}, "`max_steps` is 50.0; it must be a whole number"),
        ({"dropout": "0"}, "`dropout` is '0'; it must be a number"),
    ],
)
def test_mistakes_at_a_resume_name_the_argument_too(
    options: dict[str, Any], message: str, trained_run: Path, text_file: Path
) -> None:
    before = (trained_run / "config.json").read_bytes()
    with pytest.raises(charformer.UserError, match=message):
        charformer.train(text_file, out=trained_run, resume=True, **options)
    assert (trained_run / "config.json").read_bytes() == before


def test_a_run_is_not_overwritten_unasked(trained_run: Path, text_file: Path) -> None:
    before = (trained_run / "model.safetensors").read_bytes()
    with pytest.raises(charformer.UserError, match="overwrite"):
        charformer.train(text_file, out=trained_run, steps=2, **SHAPE)
    assert (trained_run / "model.safetensors").read_bytes() == before


MISTAKES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"steps": 0}, ["--steps", "0"], "`max_steps` is 0"),
    ({"learning_rate": -1.0}, ["--learning-rate", "-1"], "`learning_rate` is -1"),
    ({"learning_rate": 2e9, "steps": 9}, ["--learning-rate", "2e9", "--steps", "9"], "a lower `learning_rate` or `g"),
    ({"n_embd": 33}, ["--n-embd", "33"], "`n_embd` 33 is not a multiple of `n_head` 2"),
    ({"block_size": 30_000}, ["--block-size", "30000"], "choose a `block_size` of at most"),
    ({"freeze": "attention"}, [], "`freeze` is for fine-tuning"),
    ({"preset": "huge"}, [], "`preset` is 'huge'"),
    ({"encoding": "klingon"}, ["--encoding", "klingon"], "`encoding` klingon is not an encoding"),
    ({"encoding": "utf-16"}, ["--encoding", "utf-16"], "try another `encoding`"),
    ({"data": "nowhere.txt"}, ["--data", "nowhere.txt"], "`data` takes files"),
    ({"prompt": "\U0001f4a5"}, ["--prompt", "\U0001f4a5"], r"U\+1F4A5"),
    ({"out": "a/file"}, ["--out", "a/file"], "choose another `out`"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "flags", "named"), MISTAKES, ids=[named for _, _, named in MISTAKES])
def test_mistakes_name_the_argument_here_and_the_flag_in_the_command(
    arguments: dict[str, Any],
    flags: list[str],
    named: str,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    given: dict[str, Any] = {"data": text_file, "out": "run", "steps": 3} | SHAPE | arguments
    with pytest.raises(charformer.UserError, match=named) as raised:
        charformer.train(given.pop("data"), **given)
    assert " --" not in str(raised.value)
    if flags:
        assert command.main(["--data", str(text_file), "--out", "command", "--steps", "3", *TINY, *flags]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "`" not in said
        for field in raised.value.fields:
            assert f"--{'steps' if field == 'max_steps' else field.replace('_', '-')}" in said


def test_a_resumed_run_keeps_its_dtype_and_replaces_lost_weights(text_file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    charformer.train(text_file, out=run.path, steps=2, dtype="float32", muon_learning_rate=0, **SHAPE)
    run.weights.unlink()
    again = charformer.train(text_file, out=run.path, steps=3, resume=True, learning_rate=0)  # no better than before
    assert again.best_step == 3
    assert run.read_config()["machine"]["dtype"] == "float32"


def test_an_unknown_device_is_refused(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(charformer.UserError, match="`device` is 'gpu'; it must be one of auto, cpu, cuda, mps"):
        charformer.train(text_file, out=tmp_path / "run", device="gpu", **SHAPE)  # type: ignore[arg-type]

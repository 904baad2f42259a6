"""Fixtures: a cache folder for each test, real text without a network, and one small trained run."""

import os
import signal
from pathlib import Path

import pytest

# Before anything imports torch or triton: the tests are the CPU's, with kernels interpreted, but for `make gpu`, which
# sets it to 0.
if os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A graph that an earlier version compiled does not know that an op's result has changed its shape.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

from charformer.commands import train
from charformer.data import sources

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs, and the processes they start, ignore it

TINY = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "24", "--batch-size", "8"]
TINY += ["--ngram-order", "0"]  # tests of the n-gram prior make their own runs


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr("charformer.data.corpus.cache_folder", lambda: folder / "charformer")
    return folder / "charformer"


@pytest.fixture(scope="session")
def english() -> str:
    return sources.python_docs()[:40_000]


@pytest.fixture(scope="session")
def text_file(english: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "docs.txt"
    path.write_text(english, encoding="utf-8", newline="")
    return path


@pytest.fixture(scope="session")
def trained_run(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the real command, 40 steps of a tiny model, which tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charformer.data.corpus.cache_folder", lambda: folder / "cache")
        flags = ["--data", str(text_file), "--out", str(folder / "run"), "--steps", "40", "--eval-interval", "20"]
        assert train.main([*flags, *TINY]) == 0
    return folder / "run"

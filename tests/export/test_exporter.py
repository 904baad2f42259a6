"""Test exports that fail, and the files that they leave."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import charformer
from bench.engines.sampling_models import random_run
from charformer.commands import export as command
from charformer.config import ModelConfig
from charformer.data import corpus
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.tensors import write_tensors
from charformer.sampling.onnx_engine import OnnxEngine
from export.exporter import Export, export
from export.verify import Comparison


def copy_of(run: Path, folder: Path, **changed: float) -> RunDir:
    """Multiply all weights of some tensors of the run."""
    copy = RunDir(folder)
    folder.mkdir()
    source = RunDir(run)
    config, _ = source.read_shape()
    tensors, metadata = source.read_weights(config)
    for name, factor in changed.items():
        tensors[name.replace("__", ".")] = tensors[name.replace("__", ".")] * np.float32(factor)
    write_tensors(copy.weights, tensors, metadata)
    for name in ("config.json", "vocab.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    return copy


def test_what_is_exported_is_measured(trained_run: Path, text_file: Path, tmp_path: Path) -> None:
    text = corpus.load(str(text_file))
    losses = {}
    for precision, most in (("fp32", 1e-5), ("fp16", 1e-3), ("int8", 0.01), ("int4", 0.5)):
        done = export(RunDir(trained_run), tmp_path / "model.onnx", precision, portable=False, corpus=text)
        assert done.bytes == (tmp_path / "model.onnx").stat().st_size
        assert done.text == "characters of docs.txt's validation split"
        assert 3000 < done.comparison.characters <= 4096
        assert 0 <= done.comparison.kl < most
        assert not done.costs_too_much or precision == "int4"
        losses[precision] = done.comparison.checkpoint_loss
        assert OnnxEngine(tmp_path / "model.onnx").description.draft is not None
    assert len(set(losses.values())) == 1
    assert 2 < losses["fp32"] < 3.6


def test_a_short_text_is_enough(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("def f():" * 3, encoding="utf-8")
    done = export(RunDir(trained_run), tmp_path / "m.onnx", "fp32", False, corpus.load(str(tmp_path / "short.txt")))
    assert done.comparison.characters > 0


def test_fp32_that_is_off_is_refused_and_the_old_file_stays(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run", head__weight=1e5)  # logits so large that float32 cannot hold 1e-4
    run.onnx.write_bytes(b"the old one")
    with pytest.raises(UserError, match=r"logits are off by .*was not written"):
        export(run, run.onnx, "fp32", portable=False, corpus=None)
    assert run.onnx.read_bytes() == b"the old one"
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "vocab.json",
        "model.safetensors",
        "model.onnx",
    }


def test_a_file_that_is_not_an_export_stays(trained_run: Path, tmp_path: Path) -> None:
    run, other = copy_of(trained_run, tmp_path / "run"), copy_of(trained_run, tmp_path / "other")
    (tmp_path / "short.txt").write_text("x", encoding="utf-8")
    for out in (other.weights, run.weights, run.vocab, tmp_path / "short.txt"):
        before = out.read_bytes()
        with pytest.raises(UserError, match="is not a file that charformer-export wrote; choose another `out`"):
            charformer.load(run.path, engine="torch").export(out)
        assert out.read_bytes() == before
    with pytest.raises(UserError, match="is not a file; `out` needs"):
        export(run, tmp_path, "int8", portable=False, corpus=None)


def test_an_export_even_a_damaged_one_is_replaced(trained_run: Path, tmp_path: Path) -> None:
    run, out = copy_of(trained_run, tmp_path / "run"), tmp_path / "m.onnx"
    out.touch()
    for _ in range(2):
        export(run, out, "int8", portable=False, corpus=None)
        OnnxEngine(out)
        out.write_bytes(b"?" + out.read_bytes()[1:])
    run.onnx.write_bytes(b"damaged beyond recognition")
    export(run, run.onnx, "int8", portable=False, corpus=None)
    OnnxEngine(run.onnx)


@pytest.mark.parametrize("ngram_order", [0, 2])
def test_only_a_run_without_a_prior_lacks_a_draft(
    ngram_order: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, vocab_size=9, ngram_order=ngram_order)
    run = random_run(tmp_path / "run", config)
    assert command.main(["--run", str(run.path)]) == 0
    charformer.load(run.path).export(tmp_path / "m.onnx")
    for said in (capsys.readouterr().out, caplog.text):
        assert "the file is checked on random characters" in said
        assert ("has no draft for speculative sampling" in said) == (ngram_order == 0)


def test_weights_that_are_nan_are_refused(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run", blocks__0__mlp__fc__weight=float("nan"))
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc\.weight .*not finite"):
        export(run, run.onnx, "int8", portable=False, corpus=None)


def test_a_text_with_strange_characters_is_refused(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("αβγ" * 100, encoding="utf-8")
    with pytest.raises(UserError, match=r"greek.txt has characters that the run has not: .*U\+03B1"):
        export(RunDir(trained_run), tmp_path / "m.onnx", "fp32", False, corpus.load(str(tmp_path / "greek.txt")))


def test_what_costs_more_than_a_hundredth_is_warned_of(tmp_path: Path) -> None:
    figures = {"characters": 100, "max_logit_error": 0.5, "kl": 0.02, "checkpoint_loss": 1.5, "chars_per_second": 1.0}
    for loss, on_text, wanted in ((1.509, True, False), (1.511, True, True), (1.6, False, False), (1.4, True, False)):
        comparison = Comparison(loss=loss, **figures)
        assert Export(tmp_path, 1, "int4", False, "best", "text", on_text, comparison).costs_too_much == wanted


def test_a_text_of_a_few_characters_is_refused(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("def f()", encoding="utf-8")
    with pytest.raises(UserError, match="too short"):
        export(RunDir(trained_run), tmp_path / "m.onnx", "int8", False, corpus.load(str(tmp_path / "tiny.txt")))


def test_16_bits_that_overflow_are_refused(trained_run: Path, tmp_path: Path) -> None:
    run = copy_of(trained_run, tmp_path / "run", blocks__0__mlp__proj__weight=1e9)
    with pytest.raises(UserError, match="fp16 is too coarse"):
        export(run, run.onnx, "fp16", portable=False, corpus=None)
    assert not run.onnx.exists()


def test_a_folder_that_is_not_there(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        export(RunDir(trained_run), tmp_path / "no" / "m.onnx", "fp32", portable=False, corpus=None)


def test_torch_is_never_imported(trained_run: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from charformer.commands import export, sample\n"
        "assert export.main(['--run', sys.argv[1], '--out', sys.argv[2]]) == 0\n"
        "assert sample.main(['--onnx', sys.argv[2], '--max-new-tokens', '20', '--seed', '1']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(trained_run), str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr

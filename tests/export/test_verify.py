"""Compare the NumPy forward pass with the PyTorch model, and check the comparison of a wrong file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from charformer.runs.checkpoint import load_model
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine
from export.exporter import export
from export.verify import compare, reference_logits


def test_the_reference_is_the_pytorch_model(trained_run: Path) -> None:
    run = RunDir(trained_run)
    model, vocab = load_model(run)
    ids = np.random.default_rng(0).integers(len(vocab), size=(3, 24))
    with torch.inference_mode():
        wanted = model.double().eval()(torch.from_numpy(ids)).numpy()
    config, _ = run.read_shape()
    found = reference_logits(config, run.read_weights(config)[0], ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7)  # PyTorch's rotations are float32


def test_figures_are_those_of_the_definitions(trained_run: Path, tmp_path: Path) -> None:
    run = RunDir(trained_run)
    config, vocab = run.read_shape()
    export(run, tmp_path / "model.onnx", "fp32", portable=False, corpus=None)
    engine = OnnxEngine(tmp_path / "model.onnx")
    ids = np.random.default_rng(1).integers(len(vocab), size=(2, 12))
    right = reference_logits(config, run.read_weights(config)[0], ids[:, :-1])
    wrong = right.copy()
    wrong[0, 3, 5] += 0.5  # the reference says so, the file does not
    figures = compare(engine, ids, wrong)
    assert figures.characters == 22
    assert figures.max_logit_error == pytest.approx(0.5, abs=1e-4)
    p = np.exp(wrong) / np.exp(wrong).sum(axis=-1, keepdims=True)
    q = np.exp(right) / np.exp(right).sum(axis=-1, keepdims=True)
    assert figures.kl == pytest.approx((p * np.log(p / q)).sum() / 22, rel=1e-3)
    targets = ids[:, 1:]
    picked = [-np.log(q[row, place, targets[row, place]]) for row in range(2) for place in range(11)]
    assert figures.loss == pytest.approx(np.mean(picked), abs=1e-5)
    assert figures.checkpoint_loss != pytest.approx(figures.loss, abs=1e-6)
    assert figures.chars_per_second > 0

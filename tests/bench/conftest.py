"""A small preset for the benches that a test calls in its own process."""

from dataclasses import replace

import pytest

from charformer.presets import PRESETS


@pytest.fixture(autouse=True)
def small_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset nano's model small; its batches, its text windows and its recipe stay."""
    nano = PRESETS["nano"]
    small = replace(nano.model, n_layer=1, n_head=2, n_embd=32)
    monkeypatch.setitem(PRESETS, "nano", replace(nano, model=small))

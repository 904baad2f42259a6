"""nanoGPT's model as an engine, with its own settings for a text of characters, from the user's own checkout."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.engines.plain import PlainEngine
from bench.engines.variant import Variant
from charformer.data.corpus import Corpus
from charformer.device import autocast
from charformer.errors import UserError

# From its settings for Tiny Shakespeare.
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.99)
GRAD_CLIP = 1.0


def build(variant: Variant, corpus: Corpus, device: torch.device, checkout: Path) -> PlainEngine:
    """Return an engine with nanoGPT's model and optimizer. Raise UserError if ``checkout`` has no model.py."""
    module, shape = _load(checkout), variant.model
    config = module.GPTConfig(
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=shape.dropout,
        bias=False,
    )
    model = module.GPT(config).to(device)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with autocast(variant.dtype, device):
            return model(x, y)[1]

    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, device.type)
    return PlainEngine(variant, corpus, device, model, loss, optimizer, GRAD_CLIP)


def require(checkout: Path) -> Path:
    """Return the path of the checkout's model.py. Raise UserError if there is none."""
    file = checkout / "model.py"
    if not file.is_file():
        raise UserError(f"{checkout} has no model.py; --nanogpt names a checkout of nanoGPT")
    return file


def _load(checkout: Path) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_model", require(checkout))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

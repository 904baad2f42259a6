"""The baseline in training."""

from functools import partial

import torch

from bench.engines import baseline
from bench.engines.plain import PlainEngine
from bench.engines.variant import Variant
from charformer.data.corpus import Corpus


def build(variant: Variant, corpus: Corpus, device: torch.device) -> PlainEngine:
    """The yardstick, with its own optimizer."""
    model = baseline.Baseline(variant.model).to(device)
    return PlainEngine(variant, corpus, device, model, partial(baseline.loss, model), baseline.optimizer(model))

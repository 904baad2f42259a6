"""The baseline in training."""

from functools import partial

import torch

from bench import baseline
from bench.trainers.engine import Variant
from bench.trainers.plain import PlainEngine
from charformer.data.corpus import Corpus


def build(variant: Variant, corpus: Corpus, device: torch.device) -> PlainEngine:
    """The yardstick, with its own optimizer."""
    model = baseline.Baseline(variant.model).to(device)
    return PlainEngine(variant, corpus, device, model, partial(baseline.loss, model), baseline.optimizer(model))

"""``sampler.pick`` and ``sampler.filter_logits`` for tensors, so that characters are picked where the logits are.

Ties go the same way: the sorts are stable, and of equal values the first is taken.
"""

import math

from torch import Tensor


def pick(logits: Tensor, noise: Tensor | None, temperature: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the ids, (N,), that ``sampler.pick`` picks, on the device of the logits.

    Args:
        logits: (N, V), any floating dtype; computed with in float64.
        noise: (N, V) float64; None picks the largest logit.
        temperature: float64, of no dimension, above 0 where there is noise.
        top_k, top_p: as in ``SamplingConfig``.
    """
    if noise is None:
        return logits.argmax(dim=-1)
    return (filter_logits(logits.double() / temperature, top_k, top_p) + noise).argmax(dim=-1)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return (N, V) logits, with -inf for what top-k and then top-p leave out, as ``sampler.filter_logits`` does."""
    if 0 < top_k < logits.shape[1]:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        logits = logits.scatter(-1, order[:, top_k:], -math.inf)
    if top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        weights = (ranked - ranked[:, :1]).exp()
        before = weights.cumsum(dim=-1) - weights
        out = before >= top_p * weights.sum(dim=-1, keepdim=True)
        logits = logits.scatter(-1, order, ranked.masked_fill(out, -math.inf))
    return logits

"""Test the arguments that every op refuses on every backend."""

import pytest
import torch

from kernels import backend, ops
from tests.kernels.marks import NEEDS_KERNELS, random


@pytest.mark.parametrize("name", [pytest.param("triton", marks=NEEDS_KERNELS), "reference", "auto"])
def test_shapes_and_dtypes_that_do_not_fit_are_refused_on_every_backend(name: str) -> None:
    """With such arguments a kernel would read and write outside its tensors."""
    x, heads, weight = random(2, 3, 16), random(1, 2, 9, 16), torch.ones(16)
    targets = torch.zeros(6, dtype=torch.int64)
    with backend.force(name):
        for q, k, v in (
            (heads, heads, heads[..., :8]),
            (heads, heads[:, :, :5], heads[:, :, :5]),
            (heads, heads[:, :1], heads[:, :1]),
            (heads, heads.half(), heads.half()),
        ):
            with pytest.raises(ValueError, match="q, k and v"):
                ops.attention(q, k, v)
        for args in ((x, weight[:8], weight), (x, weight, weight[:1])):
            with pytest.raises(ValueError, match="x, weight and bias"):
                ops.layer_norm(*args)
        with pytest.raises(ValueError, match="x, weight and bias"):
            ops.add_dropout_layer_norm(x, x, weight[:8], weight[:8])
        with pytest.raises(ValueError, match="residual and x"):
            ops.add_dropout_layer_norm(x[0], x, weight, weight)
        qkv, angles = random(2, 9, 3, 2, 16), random(9, 8)
        for wrong_qkv, cos in ((qkv[:, :5], angles), (qkv, angles[:, :4]), (qkv[:, :, :2], angles), (qkv[0], angles)):
            with pytest.raises(ValueError, match="qkv, cos and sin"):
                ops.rotary(wrong_qkv, cos, cos)
        for logits, wrong in ((x[0], targets), (x, targets), (random(6, 4), targets.int())):
            with pytest.raises(ValueError, match="logits and targets"):
                ops.cross_entropy(logits, wrong)

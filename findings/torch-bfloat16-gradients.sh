#!/usr/bin/env bash
# PyTorch's CPU sums the gradients of LayerNorm and of embeddings in bfloat16, also under autocast.
#
# Guess: a gradient that is a sum over all positions is added in float32 and rounded once, as Linear's, RMSNorm's and
#   GroupNorm's are. Under autocast the weights and their gradients are float32, so nothing can be lost.
# Seen: LayerNorm's backward pass adds in the dtype of its input, one position after another, and 256 + 1 is 256 in
#   bfloat16. Where a Linear under autocast made the input bfloat16, 65,536 gradients of 1 give the bias 256, in a
#   float32 tensor. Normal gradients, of both signs, leave an error of 28 %. F.embedding and indexing add in bfloat16
#   where the weights are bfloat16: 256 for tokens that occur 616 to 748 times. float16 stops at 2048.
# Versions: PyTorch 2.13.0 on the CPU, one thread. Each thread sums its part, so two threads stop at 512.
# Why it matters: a character-level model has about a hundred tokens, each hundreds of times in a batch, and biases and
#   weights of LayerNorm that are summed over every position. The loss still falls, since Adam divides by the size of
#   the gradient, but most of each batch adds nothing to these gradients.
# Instead: keep the residual stream, which LayerNorm reads, in float32 (layer_norm(x.float()) under autocast), and the
#   embeddings too; in pure bfloat16 look tokens up by F.one_hot(tokens, n).to(w.dtype) @ w.
#
# Expected output:
#   PyTorch 2.13.0: gradients of 65,536 positions, each position's is 1
#   autocast bfloat16: bias of LayerNorm 256 (torch.float32), of Linear 65536 (torch.float32)
#   autocast bfloat16, normal gradients: error of LayerNorm's bias 28%, with a float32 input 0%
#   tokens occur 616 to 748 times
#   weights in float32 : embedding 616 to 748, indexing 616 to 748, LayerNorm's bias 65536
#   weights in float16 : embedding 616 to 748, indexing 616 to 748, LayerNorm's bias 2048
#   weights in bfloat16: embedding 256 to 256, indexing 256 to 256, LayerNorm's bias 256
#   bfloat16 as a product with one_hot 616 to 748
set -euo pipefail
[ $# -gt 0 ] || set -- torch==2.13.0 numpy==2.4.6
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
cat > program.py <<'PYTHON'
import sys

import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
POSITIONS, TOKENS, WIDTH = 65_536, 96, 64
print(f"PyTorch {torch.__version__.partition('+')[0]}: gradients of 65,536 positions, each position's is 1")

linear, norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
with torch.autocast("cpu", torch.bfloat16):
    hidden = linear(torch.ones(POSITIONS, WIDTH))
    hidden.backward(torch.ones_like(hidden))
    normed = norm(hidden.detach())
    normed.backward(torch.ones_like(normed))
mixed, linear_bias = norm.bias.grad, linear.bias.grad
print(f"autocast bfloat16: bias of LayerNorm {mixed[0]:.0f} ({mixed.dtype}), ", end="")
print(f"of Linear {linear_bias[0]:.0f} ({linear_bias.dtype})")


def bias_error(x, gradient):
    norm = nn.LayerNorm(WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        norm(x).backward(gradient.to(x.dtype))
    exact = gradient.double().sum(0)
    return float((norm.bias.grad - exact).norm() / exact.norm())


x, gradient = torch.randn(2, POSITIONS, WIDTH).bfloat16()
narrow, wide = bias_error(x, gradient), bias_error(x.float(), gradient)
print(f"autocast bfloat16, normal gradients: error of LayerNorm's bias {narrow:.0%}, with a float32 input {wide:.0%}")

tokens = torch.randint(TOKENS, (POSITIONS,), generator=torch.Generator().manual_seed(0))
right = int(tokens.bincount().min()), int(tokens.bincount().max())
print("tokens occur {} to {} times".format(*right))


def table_gradient(dtype, look_up):
    weight = torch.zeros(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    look_up(weight).sum().backward()
    return int(weight.grad.min()), int(weight.grad.max())


embedding, layer_norm = {}, {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    embedding[dtype] = table_gradient(dtype, lambda weight: F.embedding(tokens, weight))
    indexing = table_gradient(dtype, lambda weight: weight[tokens])
    norm = nn.LayerNorm(WIDTH, dtype=dtype)
    x = torch.ones(POSITIONS, WIDTH, dtype=dtype)
    norm(x).backward(torch.ones_like(x))
    layer_norm[dtype] = int(norm.bias.grad[0])
    counted = "embedding {} to {}, indexing {} to {}".format(*embedding[dtype], *indexing)
    print(f"weights in {str(dtype).partition('.')[2]:8}: {counted}, LayerNorm's bias {layer_norm[dtype]}")
one_hot = table_gradient(torch.bfloat16, lambda weight: F.one_hot(tokens, TOKENS).to(weight.dtype) @ weight)
print("bfloat16 as a product with one_hot {} to {}".format(*one_hot))
if not (
    mixed[0] == 256
    and linear_bias[0] == POSITIONS
    and narrow > 0.05 > wide
    and embedding[torch.bfloat16] == (256, 256)
    and embedding[torch.float16] == embedding[torch.float32] == right
    and list(layer_norm.values()) == [POSITIONS, 2048, 256]
):
    sys.exit("No longer seen: the gradients of bfloat16 are right, or wrong in another way.")
PYTHON
venv/bin/python program.py

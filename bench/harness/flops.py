"""What training costs in floating-point operations, whatever code does it.

Counted as for PaLM (Chowdhery et al. 2022, appendix B): products with weights and attention's two products, nothing
recomputed; attention counts the causal half of its scores.
"""

from math import prod

from charformer.config import ModelConfig


def per_character(config: ModelConfig, freeze: str = "none") -> float:
    """Return the FLOPs that ``freeze`` leaves of a character's forward and backward pass and its weights' gradients.

    A product costs 2 FLOPs a weight forward, 2 for the gradient of its input and 2 for that of the weight.
    """
    shapes = config.weight_shapes()
    matrices = {name: prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "_emb." not in name}
    scores = config.n_layer * config.block_size * config.n_embd  # a character reads half of the context on average
    if freeze == "trunk":  # the gradient ends at the layer norm below the head
        return 2.0 * sum(matrices.values()) + 4 * matrices["head.weight"] + 2 * scores
    frozen = sum(size for name, size in matrices.items() if freeze == "attention" and ".attn." in name)
    return 6.0 * sum(matrices.values()) - 2 * frozen + 6 * scores

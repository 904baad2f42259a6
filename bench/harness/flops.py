"""Count the floating-point operations of training, whichever code does it.

They are counted as for PaLM (Chowdhery et al. 2022, appendix B): matmuls with weights and attention's two matmuls, with
nothing recomputed. Of attention's scores only the causal half counts.
"""

from math import prod

from charformer.config import ModelConfig


def per_character(config: ModelConfig, freeze: str = "none") -> float:
    """Return the FLOPs of one character in training, forward and backward, without the work that ``freeze`` saves.

    A matmul costs 2 FLOPs a weight forward, 2 for the gradient of its input and 2 for that of the weight.
    """
    shapes = config.weight_shapes()
    matrices = {name: prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "_emb." not in name}
    scores = config.n_layer * config.block_size * config.n_embd  # a character reads half of the context on average
    if freeze == "trunk":  # the gradient ends at the layer norm below the head
        return 2.0 * sum(matrices.values()) + 4 * matrices["head.weight"] + 2 * scores
    frozen = sum(size for name, size in matrices.items() if freeze == "attention" and ".attn." in name)
    return 6.0 * sum(matrices.values()) - 2 * frozen + 6 * scores

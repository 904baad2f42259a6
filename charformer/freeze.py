"""What each ``--freeze`` means: which weights of a fine-tune keep their values."""

from charformer.model import GPT

FREEZES = ("none", "attention", "trunk")


def freeze(model: GPT, what: str) -> None:
    """Mark the weights that train.

    ``attention`` freezes everything under ``attn.``; ``trunk`` all but the head and the final layer norm, so that
    no gradient is computed below them. That holds for the embedding of new characters too: to train it, the
    backward pass would have to run through every block, which is what freezing the trunk saves.
    """
    for name, parameter in model.named_parameters():
        frozen = {
            "none": False,
            "attention": ".attn." in name,
            "trunk": not name.startswith(("head.", "ln_f.")),
        }[what]
        parameter.requires_grad_(not frozen)


def train_mode(model: GPT) -> None:
    """Turn dropout on, unless every block is frozen: what does not learn is read as it will be when sampling."""
    model.train(any(parameter.requires_grad for parameter in model.blocks.parameters()))


def count_parameters(model: GPT) -> tuple[int, int]:
    """How many parameters train, and how many are frozen."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]

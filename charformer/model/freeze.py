"""The meaning of each ``--freeze``: the weights that keep their values in a fine-tune."""

from charformer.model.gpt import GPT

FREEZES = ("none", "attention", "trunk", "all")
# The norm and the gate are cheap to train, and no backward pass below them is needed.
ABOVE_TRUNK = ("head.", "ln_f.", "ngram_prior.gate.")


def freeze(model: GPT, what: str) -> None:
    """Mark the weights that train.

    ``attention`` freezes everything under ``attn.``. ``trunk`` freezes all but the head, the final layer norm and the
    gate of an n-gram prior, so that no gradient is computed below them. This includes the embedding of new characters
    and the prior's input map: to train them, the backward pass would have to run through every block, which freezing
    the trunk avoids. ``all`` freezes everything, so that a fine-tune can only count a new n-gram table, and scale the
    head and the gate by the one factor that is chosen at its start (charformer/training/correction.py).
    """
    for name, parameter in model.named_parameters():
        frozen = {
            "none": False,
            "attention": ".attn." in name,
            "trunk": not name.startswith(ABOVE_TRUNK),
            "all": True,
        }[what]
        parameter.requires_grad_(not frozen)


def is_trunk_frozen(model: GPT) -> bool:
    """Return whether nothing trains except the head, the final layer norm and the gate of an n-gram prior."""
    return not any(p.requires_grad for name, p in model.named_parameters() if not name.startswith(ABOVE_TRUNK))


def train_mode(model: GPT) -> None:
    """Turn dropout on, unless the trunk is frozen: a trunk that does not learn then behaves as in sampling."""
    model.train(not is_trunk_frozen(model))


def count_parameters(model: GPT) -> tuple[int, int]:
    """Return how many parameters train, and how many are frozen."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]

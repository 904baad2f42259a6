"""The random numbers of dropout, which are a function of the run's seed, the step and the process alone."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from kernels import ops


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch for the masks of a step in the process ``rank``, so that a resumed run draws the same ones."""
    numbers = np.random.SeedSequence((seed, step, rank))
    torch.manual_seed(int(numbers.generate_state(1, np.uint64)[0]))


def drawn_at_once(device: torch.device, blocks: int) -> AbstractContextManager[None]:
    """Return a context in which a GPU's kernels share one draw of dropout seeds; elsewhere it does nothing.

    Each block takes three seeds: one for attention and two for its residual additions.
    """
    if device.type != "cuda":
        return nullcontext()
    return ops.seeds_from(ops.draw_seeds(3 * blocks, device))

"""A check of a training's kernels, run once before the training starts."""

import logging

import torch

from charformer.config import ModelConfig
from charformer.errors import UserError
from charformer.training.distributed import World
from kernels import backend
from kernels.checks.cases import step_cases
from kernels.checks.self_check import DeviceFaultError, failures

MAX_TIME = 512  # positions; PyTorch's reference holds the scores of all pairs of positions in memory
BATCH = 2  # enough for every stride to differ, as in a step

log = logging.getLogger("charformer")


def check_kernels(config: ModelConfig, device: torch.device, dtype: torch.dtype, world: World) -> None:
    """Replace each op whose kernel fails here, in any process, by PyTorch's own functions, and log a warning.

    A kernel fails if it does not compile or launch, or if its results are wrong. Every process must call this.
    PyTorch's random state does not change. Raises UserError if a kernel causes a GPU fault, after which nothing runs.
    """
    if "triton" not in backend.on(device).values():
        return
    cases = step_cases(
        dtype,
        BATCH,
        min(config.block_size, MAX_TIME),
        config.n_head,
        config.n_embd // config.n_head,
        config.vocab_size,
        config.dropout,
        config.attention_dropout,
        rotary=bool(config.rope_base),
    )
    try:
        failed = failures(cases, device)
    except DeviceFaultError as error:
        raise UserError(str(error)) from error
    for op in backend.OPS:
        if world.all_reduce_max(int(op in failed)):
            reason = failed.get(op, "it failed in another process")
            backend.fall_back(op, reason)
            log.warning("the kernel of %s does not work here, PyTorch's own function runs instead: %s", op, reason)

"""The kernels of a training, tried once before it starts."""

import logging

import torch

from charformer.config import ModelConfig
from charformer.errors import UserError
from charformer.training.distributed import World
from kernels import backend
from kernels.checks.cases import step_cases
from kernels.checks.self_check import DeviceFaultError, failures

MAX_TIME = 512  # positions; what PyTorch compares with has all of their scores in memory
BATCH = 2  # enough for every stride of a step to differ

log = logging.getLogger("charformer")


def check_kernels(config: ModelConfig, device: torch.device, dtype: torch.dtype, world: World) -> None:
    """Let each op whose kernel fails on this machine, in any process, run PyTorch's own functions, and warn of it.

    A kernel fails that does not compile or launch, or whose results are wrong. Every process must call this. PyTorch's
    random state does not move. Raises UserError where a kernel ends in a fault of the GPU, behind which nothing runs.
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

"""The processes that train one model together when torchrun starts them.

Each process works on its slice of every batch, and PyTorch's DistributedDataParallel averages the gradients (Li et al.
2020, arXiv 2006.15704), so that every process takes the same steps. The main process alone writes.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from charformer.errors import UserError
from charformer.training.signals import StopRequest

if TYPE_CHECKING:  # torch takes seconds to import, and a single process does not need it here
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")


class ProcessLostError(UserError):
    """Raised when another process of the training ends before its work is done."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this training has ended; "
            "`resume` continues it, and torchrun's --max-restarts does so by itself"
        )


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees them; without torchrun there is one.

    Attributes:
        rank: the number of this process, 0 for the main process.
        size: the number of processes.
        local_rank: the number of this process on its machine, and of its GPU.
        restarts: the number of times that torchrun has restarted the processes.
        is_launched: whether torchrun started the processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    is_launched: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def check(self, batch_size: int, gpus: int | None) -> None:
        """Raise UserError for a batch that cannot be split, or for fewer GPUs (None on a CPU) than processes."""
        if batch_size % self.size:
            raise UserError(
                f"{self.size} processes cannot split a batch of {batch_size}; take a multiple as `batch_size`"
            )
        if gpus is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus:
            raise UserError(f"more processes than the {gpus} GPUs of this machine; lower torchrun's --nproc-per-node")

    def main_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main process first, and in the others only if it succeeded; return its result.

        Raises ProcessLostError if it failed in another process.
        """
        if self.size == 1:
            return work()
        if not self.is_main:
            self._raise_failures()
        try:
            result = work()
        except BaseException:
            with suppress(ProcessLostError):
                self.all_reduce_max(1)
            raise
        self._raise_failures()
        if self.is_main:
            self._raise_failures()
        return result

    def _raise_failures(self) -> None:
        if self.all_reduce_max(0):
            raise ProcessLostError

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of all processes' numbers; every process must call this. Raises ProcessLostError."""
        if self.size == 1:
            return number
        import torch
        from torch import distributed

        numbers = torch.tensor(number)
        with self.communication():
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)

    def barrier(self) -> None:
        """Wait until every process has called this or has ended.

        If a failed process exits early, torchrun kills the others.
        """
        with suppress(ProcessLostError):
            self.all_reduce_max(0)

    def agree(self, stop: StopRequest) -> bool:
        """Return whether any process was asked to stop, and pass the request on; every process must call this."""
        number = self.all_reduce_max(stop.signal or 0)
        if number:
            stop.request(number)
        return number > 0  # a later signal counts for the next step

    def all_reduce_sum(self, value: "Tensor") -> "Tensor":
        """Sum a tensor over the processes in place, and return it; all must call this. Raises ProcessLostError."""
        if self.size > 1:
            from torch import distributed

            with self.communication():
                distributed.all_reduce(value)
        return value

    def data_parallel(self, model: "nn.Module") -> "nn.Module":
        """Return ``model`` with the main process's weights and a backward pass that averages the gradients of all."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        with self.communication():
            return DistributedDataParallel(model, forward_sync_buffers=False)

    def communication(self) -> AbstractContextManager[None]:
        """Return a context that turns the errors of a lost connection into ProcessLostError.

        Any pass of a data-parallel model may raise them.
        """
        return nullcontext() if self.size == 1 else _catch_lost_connections()


ONE_PROCESS = World()


@contextmanager
def connected_world() -> Iterator[World]:
    """Yield the world that torchrun's environment variables describe, connected until the context ends."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ONE_PROCESS
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, restarts = (int(os.environ[name]) for name in names)
    world = World(rank, size, local_rank, restarts, is_launched=True)
    if world.size == 1:
        yield world
        return
    import torch
    from torch import distributed

    gpus = torch.cuda.device_count()
    if world.local_rank < gpus:
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if gpus and distributed.is_nccl_available() else "gloo"
    with world.communication():
        distributed.init_process_group(backend, store=_store(world), rank=world.rank, world_size=world.size)
    try:
        yield world
    finally:
        gc.collect()  # frees DistributedDataParallel's reference cycles: its threads abort if it outlives the group
        distributed.destroy_process_group()


def _store(world: World) -> "Store":
    """Return the store through which the processes exchange their addresses.

    torchrun's own store outlives a restart. Without a prefix it would give new processes the addresses of ended ones.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, world.size, is_master=world.is_main and not is_torchruns)
    return PrefixStore(str(world.restarts), store) if is_torchruns else store


@contextmanager
def _catch_lost_connections() -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise ProcessLostError from error
        raise

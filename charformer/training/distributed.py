"""Several processes that train one model together, as torchrun starts them.

Each works on its slice of every batch, and PyTorch's DistributedDataParallel averages the gradients (Li et al. 2020,
arXiv 2006.15704), so that every process takes the same steps. The leader alone writes.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from charformer.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and one process needs nothing of it here
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")


class TeammateLostError(UserError):
    """Another process of the team has ended before its work was done."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this training has ended; "
            "--resume goes on, and torchrun's --max-restarts does it by itself"
        )


@dataclass(frozen=True)
class Team:
    """The processes of one training, seen from one of them; without torchrun it is alone.

    Attributes:
        rank: this process's number, 0 for the leader.
        size: how many there are.
        local_rank: its number on its own machine, which is also that of its GPU.
        restarts: how often torchrun has started them anew.
        is_launched: whether torchrun has started them at all.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    is_launched: bool = False

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def check(self, batch_size: int, gpus: int | None) -> None:
        """Raise UserError for a batch that cannot be shared out, or for fewer GPUs (None on a CPU) than processes."""
        if batch_size % self.size:
            raise UserError(
                f"{self.size} processes cannot share a batch of {batch_size}; take a multiple as --batch-size"
            )
        if gpus is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus:
            raise UserError(f"more processes than the {gpus} GPUs of this machine; lower torchrun's --nproc-per-node")

    def in_turn(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done by the leader before all others, and by nobody else where it fails for it.

        Raises TeammateLostError where it has failed for another process.
        """
        if self.size == 1:
            return work()
        if not self.is_leader:
            self._hear_of_failures()
        try:
            result = work()
        except BaseException:
            with suppress(TeammateLostError):
                self.largest(1)
            raise
        self._hear_of_failures()
        if self.is_leader:
            self._hear_of_failures()
        return result

    def _hear_of_failures(self) -> None:
        if self.largest(0):
            raise TeammateLostError

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes bring; all must ask. Raises TeammateLostError."""
        if self.size == 1:
            return number
        import torch
        from torch import distributed

        numbers = torch.tensor(number)
        with self.together():
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)

    def part(self) -> None:
        """Wait until all are done, or gone: torchrun ends the others when one that has failed hangs up early."""
        with suppress(TeammateLostError):
            self.largest(0)

    def agree(self, stop: list[int]) -> bool:
        """Whether any process has a reason to stop, the number of a signal, which all have then; all must ask."""
        number = self.largest(stop[0] if stop else 0)
        if number and not stop:
            stop.append(number)
        return number > 0  # a signal since then is the next step's

    def sum(self, value: "Tensor") -> "Tensor":
        """The sum of the processes' tensors, in place; all must ask. Raises TeammateLostError."""
        if self.size > 1:
            from torch import distributed

            with self.together():
                distributed.all_reduce(value)
        return value

    def shared(self, model: "nn.Module") -> "nn.Module":
        """``model`` with the leader's weights, whose backward pass averages the gradients of all; all must ask."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        with self.together():
            return DistributedDataParallel(model, forward_sync_buffers=False)

    def together(self) -> AbstractContextManager[None]:
        """Turns a lost connection's errors, which any pass of a shared model may raise, into TeammateLostError."""
        return nullcontext() if self.size == 1 else _listening()


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The team that torchrun's environment describes, connected until the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, restarts = (int(os.environ[name]) for name in names)
    team = Team(rank, size, local_rank, restarts, is_launched=True)
    if team.size == 1:
        yield team
        return
    import torch
    from torch import distributed

    gpus = torch.cuda.device_count()
    if team.local_rank < gpus:
        torch.cuda.set_device(team.local_rank)
    backend = "cpu:gloo,cuda:nccl" if gpus and distributed.is_nccl_available() else "gloo"
    with team.together():
        distributed.init_process_group(backend, store=_store(team), rank=team.rank, world_size=team.size)
    try:
        yield team
    finally:
        gc.collect()  # a DistributedDataParallel is in cycles; if it outlived the group, its threads would abort us
        distributed.destroy_process_group()


def _store(team: Team) -> "Store":
    """Where the processes leave their addresses for one another.

    torchrun's own outlives a restart, and would give the new processes the addresses of those that have ended.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, team.size, is_master=team.is_leader and not is_torchruns)
    return PrefixStore(str(team.restarts), store) if is_torchruns else store


@contextmanager
def _listening() -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise TeammateLostError from error
        raise

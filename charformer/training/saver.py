"""Saves that do not stop a GPU for longer than copying its tensors takes."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor


class Saver:
    """Writes files at once or, in the background, in the order of the calls by one thread.

    Args:
        in_background: whether training continues while files are written, as on a GPU.
    """

    def __init__(self, in_background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "charformer-save") if in_background else None
        self._pending: list[Future[None]] = []

    def copy(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors by name, for a later ``write`` to use: copies that training does not change.

        On a GPU they are in pinned memory, and complete once the current stream has come as far.
        """
        if self._thread is None:
            return dict(tensors)  # which are written before anything can change them
        return {name: _host_copy(tensor.detach()) for name, tensor in tensors}

    def submit(self, write: Callable[[], None]) -> None:
        """Run ``write``, in the background once the copies made so far are complete. Raises what it raises.

        In the background, ``check`` and ``join`` raise it instead.
        """
        if self._thread is None:
            write()
            return
        copied = None
        if torch.cuda.is_available():
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()

        def run() -> None:
            if copied is not None:
                copied.synchronize()
            write()

        self._pending.append(self._thread.submit(run))

    def check(self) -> None:
        """Raise what a write that is done has raised."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def join(self) -> None:
        """Wait for all writes. Raises what the first that failed has raised; those behind it are still made."""
        while self._pending:
            self._pending.pop(0).result()

    def drop(self) -> None:
        """Wait for all writes, whatever they raise."""
        wait(self._pending)
        self._pending.clear()


def _host_copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)

"""Background saves, which stop a GPU only for as long as copying its tensors takes."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor


class Saver:
    """Writes files immediately, or in the background by one thread in the order of the calls.

    Args:
        in_background: whether training continues while files are written, as on a GPU.
    """

    def __init__(self, in_background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "charformer-save") if in_background else None
        self._pending: list[Future[None]] = []

    def copy(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors by name for a later ``write``; in the background, copies that training cannot change.

        Copies of GPU tensors are in pinned memory, and complete once the current stream has reached this point.
        """
        if self._thread is None:
            return dict(tensors)  # no copies: they are written before anything can change them
        return {name: _host_copy(tensor.detach()) for name, tensor in tensors}

    def submit(self, write: Callable[[], None]) -> None:
        """Run ``write`` now, or in the background once the copies made so far are complete.

        Raises the errors of ``write``; in the background, ``check`` and ``join`` raise them instead.
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
        """Raise the error of a finished write, if one failed."""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def join(self) -> None:
        """Wait for the writes in order. Raises the error of the first that failed; later writes still run."""
        while self._pending:
            self._pending.pop(0).result()

    def drop(self) -> None:
        """Wait for all writes and ignore their errors."""
        wait(self._pending)
        self._pending.clear()


def _host_copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)

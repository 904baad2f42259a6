"""A training step as one CUDA graph.

A step of a small model is hundreds of short kernels, which the host takes longer to launch than the GPU to run. A graph
(CUDA C++ Programming Guide, "CUDA Graphs") records the launches once and replays them as one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

EAGER_STEPS = 3  # before the capture: the optimizer makes its state in the first, libraries their workspaces


class CapturedStep:
    """A recorded step, to be replayed on new inputs.

    While it is recorded nothing runs, so the weights are as before.

    Args:
        step: enqueues all work of a step on static inputs and returns a loss of no dimension; it must not wait for the
            GPU, and gradients must be None when it begins.
        inputs: tensors on the GPU of the shapes and dtypes that every step has.

    Raises RuntimeError for work that cannot be captured.
    """

    def __init__(self, step: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = step(*self.inputs)

    def replay(self) -> Tensor:
        """Run the step on what ``inputs`` hold now; return its loss, which later replays leave alone.

        Random numbers follow from the seed that PyTorch's CUDA generator has at the time.
        """
        self._graph.replay()
        return self._loss.clone()


@contextmanager
def side_stream() -> Iterator[None]:
    """Run what is enqueued in here on a stream of its own, in order with what comes before and behind.

    Gradients that are first accumulated on the default stream would tie a later capture to it.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)

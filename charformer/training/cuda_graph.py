"""The capture and replay of a training step as one CUDA graph.

A step of a small model runs hundreds of short kernels, and the host takes longer to launch them than the GPU to run
them. A graph (CUDA C++ Programming Guide, "CUDA Graphs") records the launches once and replays them as one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

EAGER_STEPS = 3  # before the capture: the first creates the optimizer's state and the libraries' workspaces


class CapturedStep:
    """A recorded step that can be replayed on new inputs.

    Nothing runs during the recording, so the weights do not change.

    Args:
        step: a function that enqueues all work of a step on static inputs and returns a scalar loss; it must not wait
            for the GPU, and gradients must be None when it begins.
        inputs: tensors on the GPU, with the shapes and dtypes of every step's inputs.

    Raises RuntimeError for work that cannot be captured.
    """

    def __init__(self, step: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = step(*self.inputs)

    def replay(self) -> Tensor:
        """Run the step on the current values of ``inputs``; return its loss, which later replays do not overwrite.

        Random numbers depend on the current seed of PyTorch's CUDA generator.
        """
        self._graph.replay()
        return self._loss.clone()


@contextmanager
def side_stream() -> Iterator[None]:
    """Run the work enqueued in this context on a separate stream, after earlier work and before later work.

    Gradients that are first accumulated on the default stream would tie a later capture to it.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)

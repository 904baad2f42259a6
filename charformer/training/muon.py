"""The Muon optimizer with NorMuon's normalisation of rows.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix along the nearest semi-orthogonal matrix of
its momentum, so that all of its directions learn at one rate. NorMuon (Li et al. 2025, arXiv 2510.05491) also divides
each row, which computes one output, by the size of its recent updates.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ROWS_BETA2 = 0.95  # decay of the second moment of a row
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that maps singular values to between 0.7 and 1.2
ITERATIONS = 4  # a fifth takes longer and does not improve the loss (docs/lab/training.md)


class Muon(torch.optim.Optimizer):
    """Muon for float32 matrices.

    Args:
        groups: dicts with ``params`` and ``parts``, the number of equal slices of rows that are orthogonalised
            separately: 3 for a packed query, key and value matrix, else 1.
        lr: the learning rate, a float or a one-element tensor on the device of the parameters.
        dtype: the dtype of the iterations' matrix products.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float | Tensor, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "parts": 1})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and overwrite the gradient."""
        assert closure is None, "Muon does not evaluate the loss again"
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            momenta, ahead = [state["momentum"] for state in states], [parameter.grad for parameter in parameters]
            torch._foreach_lerp_(momenta, ahead, 1 - MOMENTUM)
            torch._foreach_lerp_(ahead, momenta, MOMENTUM)  # Nesterov's look ahead
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, state in zip(parameters, states, strict=True):
                slices = (tensor.chunk(group["parts"]) for tensor in (parameter, parameter.grad, state["rows"]))
                for matrix, gradient, rows in zip(*slices, strict=True):
                    by_shape[matrix.shape].append((matrix, gradient, rows))
        rate = self.param_groups[0]["lr"]  # the same in all groups
        for shape, matrices in by_shape.items():  # one batch per shape: fewer, larger matmuls
            weights, ahead, rows = (list(tensors) for tensors in zip(*matrices, strict=True))
            directions = _normalise_rows(self._orthogonalise(torch.stack(ahead)), rows)
            directions.mul_(rate * max(1.0, shape[0] / shape[1]) ** 0.5)
            torch._foreach_sub_(weights, directions.unbind())

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["rows"] = torch.zeros(len(parameter), 1, device=parameter.device)
        return state

    def _orthogonalise(self, matrices: Tensor) -> Tensor:
        """Return (N, R, C) matrices, tall or wide, orthogonalised, in float32; matmuls run in the optimizer's dtype."""
        is_tall = matrices.shape[1] > matrices.shape[2]
        wide = matrices.mT if is_tall else matrices
        result = orthogonalise(wide.to(self._dtype).contiguous()).float()
        return result.mT.contiguous() if is_tall else result


def _normalise_rows(directions: Tensor, rows: list[Tensor]) -> Tensor:
    """Divide each row of (N, R, C) by the root of its second moment in ``rows``, N x (R, 1); keep each matrix's norm.

    The second moments are updated first.
    """
    torch._foreach_lerp_(rows, directions.square().mean(dim=2, keepdim=True).unbind(), 1 - ROWS_BETA2)
    even = directions * torch.stack(rows).clamp_min(1e-10).rsqrt()
    norm = partial(torch.linalg.matrix_norm, keepdim=True)
    return even.mul_(norm(directions) / norm(even).clamp_min(1e-10))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return approximately the semi-orthogonal matrices nearest to (N, R, C), R <= C, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices.float(), keepdim=True) + 1e-7).to(matrices.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x

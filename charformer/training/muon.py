"""Muon, with NorMuon's rows.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a matrix moves along its momentum's nearest
semi-orthogonal matrix, so that every direction of it learns at one rate. NorMuon (Li et al. 2025, arXiv 2510.05491)
also divides each row, one an output, by what it moved by lately.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ROWS_BETA2 = 0.95  # decay of the rows' second moment
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that takes singular values to within 0.7 and 1.2
ITERATIONS = 4  # a fifth one costs a twentieth of a step of `nano`, and no loss shows it (docs/lab/training.md)


class Muon(torch.optim.AdamW):
    """AdamW, but Muon for groups with ``parts``: of how many matrices, orthogonalised apart, each parameter is made."""

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        by_shape = defaultdict(list)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None] if "parts" in group else []
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            momenta, ahead = [state["momentum"] for state in states], [parameter.grad for parameter in parameters]
            torch._foreach_lerp_(momenta, ahead, 1 - MOMENTUM)
            torch._foreach_lerp_(ahead, momenta, MOMENTUM)  # Nesterov's look ahead
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, state in zip(parameters, states, strict=True):
                of_parts = (tensor.chunk(group["parts"]) for tensor in (parameter, parameter.grad, state["rows"]))
                for matrix in zip(*of_parts, strict=True):
                    by_shape[matrix[0].shape, group["lr"]].append(matrix)
                parameter.grad = None  # which AdamW then passes over
        for (shape, rate), matrices in by_shape.items():
            weights, ahead, rows = (list(tensors) for tensors in zip(*matrices, strict=True))
            directions = _evened(self._orthogonalised(torch.stack(ahead)), rows)
            directions.mul_(rate * max(1.0, shape[0] / shape[1]) ** 0.5)
            torch._foreach_sub_(weights, directions.unbind())
        return super().step(closure)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["rows"] = torch.zeros(len(parameter), 1, device=parameter.device)
            state["step"] = torch.zeros(())  # which AdamW asks of every state that it loads
        return state

    def _orthogonalised(self, matrices: Tensor) -> Tensor:
        """(N, R, C) of any R and C; in float32, by products of the optimizer's dtype."""
        tall = matrices.shape[1] > matrices.shape[2]
        wide = matrices.mT if tall else matrices
        found = orthogonalised(wide.to(self._dtype).contiguous()).float()
        return found.mT.contiguous() if tall else found


def _evened(directions: Tensor, rows: list[Tensor]) -> Tensor:
    """(N, R, C) of the same norms, each row over the root of its second moment in ``rows``, (R, 1), updated here."""
    torch._foreach_lerp_(rows, directions.square().mean(dim=2, keepdim=True).unbind(), 1 - ROWS_BETA2)
    even = directions * torch.stack(rows).clamp_min(1e-10).rsqrt()
    norm = partial(torch.linalg.matrix_norm, keepdim=True)
    return even.mul_(norm(directions) / norm(even).clamp_min(1e-10))


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, R, C) with R <= C -> nearly the nearest semi-orthogonal matrices, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices.float(), keepdim=True) + 1e-7).to(matrices.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x

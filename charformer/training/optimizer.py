"""The optimizer of a training, and the schedule of its learning rate."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from charformer.config import TrainConfig
from charformer.model.gpt import GPT
from charformer.training.muon import Muon

ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}
MUON_STATE = {"momentum", "rows"}


def muon_parameters(model: GPT, config: TrainConfig) -> list[tuple[str, nn.Parameter]]:
    """Return the weights that Muon updates, with their names: the trainable matrices of the blocks, or none."""
    if not config.muon_learning_rate:
        return []
    trainable = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [(name, p) for name, p in trainable if p.dim() >= 2 and name.startswith("blocks.")]


class Optimizer:
    """AdamW over the weights that train; with ``muon_learning_rate``, Muon over the matrices of the blocks instead.

    Only matrices have weight decay. On a GPU the learning rates are tensors there, so that a captured step uses the
    latest rate of ``set_learning_rate``.

    Args:
        model: the model, with ``requires_grad`` off for the weights that must not train.
        dtype: the dtype of Muon's matrix products.
    """

    def __init__(self, model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        by_muon = muon_parameters(model, config)
        names = {name for name, _ in by_muon}
        others = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
        is_cuda = any(p.is_cuda for p in others)

        def rate(value: float) -> float | Tensor:
            return torch.tensor(value, device=others[0].device) if is_cuda else value

        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=rate(config.learning_rate),
            betas=(0.9, config.beta2),
            fused=True,
            capturable=is_cuda,
        )
        self.muon: Muon | None = None
        if by_muon:
            packed = [p for name, p in by_muon if ".qkv." in name]
            single = [p for name, p in by_muon if ".qkv." not in name]
            groups: list[dict[str, Any]] = [{"params": packed, "parts": 3}, {"params": single, "parts": 1}]
            self.muon = Muon(groups, rate(config.muon_learning_rate), config.weight_decay, dtype)
            self._muon_ratio = config.muon_learning_rate / config.learning_rate

    def set_learning_rate(self, rate: float) -> None:
        """Set AdamW's learning rate, and Muon's in proportion."""
        for group in self.adamw.param_groups:
            _set_rate(group, rate)
        for group in self.muon.param_groups if self.muon else ():
            _set_rate(group, rate * self._muon_ratio)

    def step(self) -> None:
        """Update the weights from their gradients."""
        if self.muon:
            self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad()
        if self.muon:
            self.muon.zero_grad()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name, ``INDEX.KEY``, and the tensor of each part of the state, with AdamW's parameters first."""
        for index, (state, _, _) in enumerate(self._states()):
            for key, tensor in state.items():
                yield f"{index}.{key}", tensor

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors that ``state`` yielded. Raises ValueError, and changes nothing, if they do not fit."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, key = name.split(".")
            found.setdefault(int(number), {})[key] = tensor
        places = list(self._states())
        if found and found.keys() != set(range(len(places))):
            raise ValueError(f"its optimizer has {len(found)} parameters instead of {len(places)}")
        for index, (_, parameter, keys) in enumerate(places):
            if not found:
                break
            if keys is MUON_STATE:
                found[index].pop("step", None)  # earlier versions kept one that was never used
            _require_fit(index, found[index], parameter, keys)
        for index, (state, parameter, _) in enumerate(places):
            if found:
                state |= {key: tensor.to(parameter.device) for key, tensor in found[index].items()}

    def _states(self) -> Iterator[tuple[dict[str, Any], Tensor, set[str]]]:
        """Yield the state of each parameter, the parameter, and the keys that its state has after the first step."""
        optimizers = [(self.adamw, ADAMW_STATE), *([(self.muon, MUON_STATE)] if self.muon else [])]
        for optimizer, keys in optimizers:
            for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                yield optimizer.state[parameter], parameter, keys


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _require_fit(index: int, state: dict[str, Tensor], parameter: Tensor, keys: set[str]) -> None:
    """Raise ValueError unless every tensor fits its parameter: a fused step reads past the end of a short one."""
    if state.keys() != keys:
        raise ValueError(f"optimizer.{index} has {', '.join(sorted(state))}")
    for key, tensor in state.items():
        shape = {"step": (), "rows": (len(parameter), 1)}.get(key, parameter.shape)
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(f"optimizer.{index}.{key} is {tuple(tensor.shape)} of {tensor.dtype}")

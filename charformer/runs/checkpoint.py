"""The saving and loading of a model, or of a complete training state, in the files of a run's folder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch

from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.model.gpt import GPT
from charformer.runs.folder import MODEL, RunDir
from charformer.runs.metrics import Counters
from charformer.runs.tensors import Tensors, read_tensors, require_finite, write_tensors

NEW_COUNTERS = ("decay_step", "end_step", "patient_from")  # which files of earlier versions lack


def save_weights(run: RunDir, weights: Mapping[str, torch.Tensor], step: int, val_loss: float) -> None:
    """Write a model's state dict to model.safetensors, with the step and the validation loss of these best weights."""
    tensors = {name: _array(tensor) for name, tensor in weights.items()}
    write_tensors(run.weights, tensors, {"step": str(step), "val_loss": repr(val_loss)})


def load_weights(run: RunDir, model: GPT) -> None:
    """Read model.safetensors into ``model``. Raises UserError if the weights do not fit, or are not finite."""
    _fill(model, run.read_weights(model.config)[0], run)


def load_model(run: RunDir, which: str = "best", dropouts: Mapping[str, Any] | None = None) -> tuple[GPT, Vocab]:
    """Return the model of a run, with its best or its last weights, on the CPU, and its vocabulary.

    ``dropouts`` replaces those of its ModelConfig.

    Raises UserError if there is no model, or its files are damaged or do not fit one another.
    """
    config, vocab = run.read_shape()
    tensors = run.read_weights(config, which)[0]
    model = GPT(replace(config, **(dropouts or {})))
    _fill(model, tensors, run)
    return model, vocab


def state_tensors(model: GPT, optimizer: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of last.safetensors with their names: the model's, and those of the optimizer's state."""
    yield from ((f"{MODEL}{name}", tensor) for name, tensor in model.state_dict().items())
    yield from ((f"optimizer.{name}", tensor) for name, tensor in optimizer)


def save_state(run: RunDir, tensors: Iterable[tuple[str, torch.Tensor]], counters: Counters) -> None:
    """Write all that an exact continuation needs, ``state_tensors`` and the counters, to last.safetensors."""
    arrays: Tensors = {name: _array(tensor) for name, tensor in tensors}
    write_tensors(run.state, arrays, {"counters": json.dumps(asdict(counters))})


def load_state(run: RunDir, model: GPT) -> tuple[Counters, dict[str, torch.Tensor]]:
    """Read last.safetensors into the model; return the counters and the optimizer's state by name.

    Raises UserError if there is nothing to resume from, or it does not fit.
    """
    if not run.state.is_file():
        raise UserError(f"the run in {run.path} has saved nothing to resume from; start again with `overwrite`")
    tensors, metadata = read_tensors(run.state)
    require_finite(tensors, run.state)
    _fill(model, _below(tensors, MODEL), run)
    try:
        counters = _counters(metadata)
        if run.weights.is_file():  # a kill between the two writes may have left it newer
            best = read_tensors(run.weights)[1]
            counters.best_step, counters.best_val_loss = int(best["step"]), float(best["val_loss"])
        else:  # the best weights are lost; those of the next evaluation become the best
            counters.best_val_loss = float("inf")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{run.state} cannot be resumed from: {error}") from error
    return counters, {name: torch.from_numpy(array) for name, array in _below(tensors, "optimizer.").items()}


def _counters(metadata: dict[str, str]) -> Counters:
    """Return the counters of last.safetensors. Raises ValueError, or an error of JSON, for impossible numbers."""
    if "training" in metadata:
        raise ValueError("an earlier version saved it, whose order of windows is no longer supported")
    values = dict.fromkeys(NEW_COUNTERS, 0) | json.loads(metadata["counters"])
    for item in fields(Counters):
        value = values[item.name]
        fits = type(value) is int or (item.type is float and isinstance(value, float))
        if not (fits and (0 <= value < 2**53 or (item.name, value) == ("best_val_loss", float("inf")))):
            raise ValueError(f"its {item.name} is {str(value)[:20]}")
    return Counters(**values)


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().numpy()


def _fill(model: GPT, tensors: Tensors, run: RunDir) -> None:
    try:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights in {run.path} do not fit its config.json: {reason}") from error

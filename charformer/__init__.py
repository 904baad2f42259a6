"""Train, fine-tune and sample small character-level GPTs on the machine that a person has.

The library's names are in ``charformer.api`` and ``charformer.api_train``, and are imported on first use (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charformer.api import Model, SamplingOptions, Score, load
    from charformer.api_train import TrainedRun, train
    from charformer.errors import UserError
    from charformer.runs.metrics import Progress

__version__ = "0.1.0"
__all__ = ["Model", "Progress", "SamplingOptions", "Score", "TrainedRun", "UserError", "__version__", "load", "train"]
MODULES = {
    "Progress": "charformer.runs.metrics",
    "TrainedRun": "charformer.api_train",
    "UserError": "charformer.errors",
    "train": "charformer.api_train",
}  # of what charformer.api does not define


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES.get(name, "charformer.api")), name)


def __dir__() -> list[str]:
    return __all__

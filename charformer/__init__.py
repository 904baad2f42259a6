"""Train, fine-tune and sample small character-level GPTs on the machine that a person has.

The library's names are in ``charformer.api`` and are imported when they are first asked for (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charformer.api import Model, SamplingOptions, Score, load
    from charformer.errors import UserError

__version__ = "0.1.0"
__all__ = ["Model", "SamplingOptions", "Score", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("charformer.errors" if name == "UserError" else "charformer.api"), name)


def __dir__() -> list[str]:
    return __all__

"""What the programs of this folder share: outputs that are checked before the work, and quiet ends."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def writable_file(text: str) -> Path:
    """The type of a flag that names a file to write: said before the work, not after it, where that cannot be done."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` and the versions that it is of, whole or not at all."""
    import triton

    versions = {"triton": triton.__version__, "torch": version("torch")}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({"versions": versions, **content}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def guarded(name: str, main: Callable[[], int]) -> int:
    """``main``'s exit code; one line and 130 for an interrupt, one line and 2 where a GPU's memory is too small."""
    try:
        return main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except torch.cuda.OutOfMemoryError:
        print(f"{name}: out of the GPU's memory; take a smaller shape", file=sys.stderr)
        return 2

"""The result files of ``kernels.aot`` and ``kernels.accuracy``."""

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any


def json_file(text: str) -> Path:
    """The type of a flag that names a file to write: said before the work, not after it, where that cannot be done."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` and the versions that it is of."""
    versions = {name: version(name) for name in ("triton", "torch")}
    path.write_text(json.dumps({"versions": versions, **content}, indent=1) + "\n", encoding="utf-8")

"""The code that these programs share: output files that are checked before the work, and errors in one line."""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def writable_file(text: str) -> Path:
    """Return the path of a file to write, as the type of a flag; reject an unwritable one before the work."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def positive(text: str) -> int:
    """Return the positive whole number in ``text``, as the type of a flag."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def write_json(path: Path, device: str, rows: list[dict[str, Any]]) -> None:
    """Write the versions, the device and ``rows``, one per line, to a file that appears whole or not at all."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = f' "versions": {json.dumps(_versions())},\n "device": {json.dumps(device)}'
    _write(path, f'{{\n{head},\n "rows": [\n{lines}\n ]\n}}\n')


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``rows``, which have the same keys, with the versions, to a file that appears whole or not at all."""
    found = [_versions() | row for row in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    _write(path, text.getvalue())


def _versions() -> dict[str, str]:
    import triton

    return {"triton": triton.__version__, "torch": version("torch")}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def guarded(name: str, main: Callable[[], int]) -> int:
    """Return ``main``'s exit code; report an interrupt (130) or a lack of GPU memory (2) in one line."""
    try:
        return main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which not every program imports
            raise
        print(f"{name}: out of the GPU's memory; take a smaller shape", file=sys.stderr)
        return 2

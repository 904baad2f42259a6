"""The search for runs in a folder."""

import logging
from pathlib import Path

from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_metadata

RUNS = "runs"  # the folder that commands search

log = logging.getLogger("charformer")


def find_runs(folder: str | Path) -> list[RunDir]:
    """Return the runs with weights one or two folders below ``folder``, the last written first.

    A damaged run, and another program's model whose files have the same names, is skipped with a warning.
    """
    found = [RunDir(path.parent) for depth in ("*", "*/*") for path in Path(folder).glob(f"{depth}/config.json")]
    readable = [run for run in found if run.weights.is_file() and _is_readable(run)]
    return sorted(readable, key=lambda run: (run.written, str(run.path)), reverse=True)


def _is_readable(run: RunDir) -> bool:
    try:
        run.read_config()
        read_metadata(run.weights)
    except UserError as error:
        log.warning("skipped: %s", error)
        return False
    return True

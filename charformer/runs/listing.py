"""The search for runs in a folder."""

from pathlib import Path

from charformer.runs.folder import RunDir

RUNS = "runs"  # the folder that commands search


def find_runs(folder: str | Path) -> list[RunDir]:
    """Return the runs with weights one or two folders below ``folder``, the last written first."""
    found = [RunDir(path.parent) for depth in ("*", "*/*") for path in Path(folder).glob(f"{depth}/config.json")]
    with_weights = [run for run in found if run.weights.is_file()]
    return sorted(with_weights, key=lambda run: (run.written, str(run.path)), reverse=True)

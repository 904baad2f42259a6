"""The runs that lie under a folder."""

from pathlib import Path

from charformer.runs.folder import RunDir

RUNS = "runs"  # where commands look


def find_runs(folder: str | Path) -> list[RunDir]:
    """Return the runs with weights in ``folder`` and in the folders of its folders, the last written ones first."""
    found = [RunDir(path.parent) for depth in ("*", "*/*") for path in Path(folder).glob(f"{depth}/config.json")]
    with_weights = [run for run in found if run.weights.is_file()]
    return sorted(with_weights, key=lambda run: (run.written, str(run.path)), reverse=True)

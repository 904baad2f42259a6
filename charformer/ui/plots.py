"""The plot loss.png: the losses of a run, and of the run that it started from."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from charformer.files import atomic_path
from charformer.runs.folder import RunDir

Rows = list[dict[str, Any]]


def plot_losses(run: RunDir, stages: list[tuple[str, Rows]]) -> None:
    """Draw training and validation loss against the characters seen, one panel per stage, in the run's loss.png."""
    figure = Figure(figsize=(5.5 * len(stages), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, stages, strict=True):
        characters = [row["characters"] / 1e6 for row in rows]
        best = min(rows, key=lambda row: row["val_loss"])
        labels = {
            "train_loss": ("training, estimated", "tab:blue"),
            "val_loss": (f"validation, estimated; best {best['val_loss']:.3f} at step {best['step']:,}", "tab:orange"),
        }
        for key, (label, color) in labels.items():
            axes.plot(characters, [row[key] for row in rows], marker=".", label=label, color=color)
        axes.plot(best["characters"] / 1e6, best["val_loss"], "o", mfc="none", color="tab:orange", markersize=10)
        axes.set_xlabel("characters seen (millions)")
        axes.set_title(title, parse_math=False)  # a file's name may contain dollar signs
        axes.grid(alpha=0.3)
        axes.margins(y=0.25)  # room for the legend above the lines
        axes.legend(loc="upper right", fontsize="small")
    panels[0].set_ylabel("loss (nats a character)")
    with atomic_path(run.plot) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

"""Speeds as a picture: horizontal bars, whiskers from the 20th to the 80th percentile."""

from pathlib import Path

from matplotlib.figure import Figure

from bench.measure import Speed
from charformer.rundir import atomic_path


def write_bars(path: Path, title: str, bars: list[tuple[str, Speed, bool]]) -> None:
    """Write a PNG of characters a second, one bar for each (label, speed, whether it is ours), the first on top."""
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    medians = [speed["p50"] for _, speed, _ in bars]
    below = [speed["p50"] - speed["p20"] for _, speed, _ in bars]
    above = [speed["p80"] - speed["p50"] for _, speed, _ in bars]
    colors = ["#2a6fb0" if ours else "#b8bec6" for *_, ours in bars]
    drawn = axes.barh(range(len(bars)), medians, xerr=[below, above], color=colors, ecolor="#444444", capsize=2)
    axes.bar_label(drawn, [f"{median:,.0f}" for median in medians], padding=6, fontsize=9)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(speed["p80"] for _, speed, _ in bars))
    axes.set_xlabel("characters a second (median; whiskers: 20th to 80th percentile)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)

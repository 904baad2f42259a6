"""Draw results: speeds as horizontal bars with whiskers, losses as curves, and parts of a sum as stacked bars."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.results import Speed
from charformer.files import atomic_path

Bar = tuple[str, Speed, bool]
Stack = tuple[str, dict[str, float]]
Curve = tuple[str, list[dict[str, Any]]]
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def write_bars(path: Path, panels: list[tuple[str, list[Bar]]]) -> None:
    """Write a PNG of characters a second, a panel for each (title, bars).

    A bar is (label, speed, whether it is ours); the first is drawn at the top.
    """
    figure, axes_of = _panels([(title, [label for label, *_ in bars]) for title, bars in panels], 0.32)
    for axes, (_, bars) in zip(axes_of, panels, strict=True):
        medians = [speed["p50"] for _, speed, _ in bars]
        below = [speed["p50"] - speed["p20"] for _, speed, _ in bars]
        above = [speed["p80"] - speed["p50"] for _, speed, _ in bars]
        colors = ["#2a6fb0" if ours else "#b8bec6" for *_, ours in bars]
        drawn = axes.barh(range(len(bars)), medians, xerr=[below, above], color=colors, ecolor="#444444", capsize=2)
        axes.bar_label(drawn, [f"{median:,.0f}" for median in medians], padding=6, fontsize=9)
        axes.set_xlim(0, 1.12 * max(speed["p80"] for _, speed, _ in bars))
    axes_of[-1].set_xlabel("characters a second (median; whiskers: 20th to 80th percentile)")
    _save(figure, path)


def write_curves(path: Path, curves: list[Curve], target: float, reference: Curve | None = None) -> None:
    """Write a PNG of validation losses against characters, a line for each (label, evaluations).

    Lines of one label share a color and an entry of the legend. ``target`` is drawn as a dashed line, and losses far
    above it are cut off. A ``reference`` is drawn in gray, as far as the other lines reach.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    labels = list(dict.fromkeys(label for label, _ in curves))
    for label, points in curves:
        color = COLORS[labels.index(label) % len(COLORS)]
        seen = [point["characters"] / 1e6 for point in points]
        axes.plot(seen, [point["val_loss"] for point in points], marker=".", color=color, label=label, alpha=0.8)
    if reference is not None:
        right = axes.get_xlim()[1]
        seen = [point["characters"] / 1e6 for point in reference[1]]
        axes.plot(seen, [point["val_loss"] for point in reference[1]], marker="s", color="gray", label=reference[0])
        axes.set_xlim(right=right)
    axes.set_ylim(top=min(axes.get_ylim()[1], target + 0.8))  # the untrained model's loss would flatten the rest
    axes.axhline(target, color="gray", linestyle="--", linewidth=1)
    right_end = (axes.get_xlim()[1], target)
    axes.annotate(f"{target:g}", right_end, xytext=(-4, 3), textcoords="offset points", ha="right", color="gray")
    axes.set_xlabel("characters seen (millions)")
    axes.set_ylabel("validation loss (nats a character)")
    axes.grid(alpha=0.3)
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, fontsize=8)
    _save(figure, path)


def write_stacks(path: Path, panels: list[tuple[str, list[Stack]]], unit: str) -> None:
    """Write a PNG of sums by their parts: a panel for each (title, stacks), a bar for each (label, size by part)."""
    figure, axes_of = _panels([(title, [label for label, _ in stacks]) for title, stacks in panels], 0.4)
    parts = list(dict.fromkeys(part for _, stacks in panels for _, sizes in stacks for part in sizes))
    for axes, (_, stacks) in zip(axes_of, panels, strict=True):
        lefts = np.zeros(len(stacks))
        for part, color in zip(parts, COLORS, strict=False):
            sizes = np.array([sizes.get(part, 0.0) for _, sizes in stacks])
            drawn = axes.barh(range(len(stacks)), sizes, left=lefts, color=color, label=part)
            lefts += sizes
        axes.bar_label(drawn, [f"{total:.3f}" for total in lefts], padding=4, fontsize=9)
        axes.set_xlim(0, 1.12 * max(lefts))
    axes_of[-1].set_xlabel(unit)
    handles, labels = axes_of[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(parts), fontsize=8)
    _save(figure, path)


def _panels(panels: list[tuple[str, list[str]]], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure, and axes for each (title, labels of bars), with bars that are ``height`` inches apart."""
    heights = [0.9 + height * len(labels) for _, labels in panels]
    figure = Figure(figsize=(8, sum(heights) + 0.3), layout="constrained")
    axes_of = list(figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0])
    for axes, (title, labels) in zip(axes_of, panels, strict=True):
        axes.set_yticks(range(len(labels)), labels, fontsize=9, parse_math=False)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes_of


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)

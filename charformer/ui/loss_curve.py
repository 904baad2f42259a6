"""A curve of losses for a terminal, drawn with the dots of braille characters."""

import math
from itertools import pairwise

from rich.text import Text

HEIGHT = 8  # rows of cells
LABEL_WIDTH = 6
# The bit of each dot of a braille cell, by column and row (Unicode 1.1, U+2800 block).
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))

Points = list[tuple[int, float]]


def loss_curve(series: list[tuple[str, Points]], max_steps: int, width: int) -> Text:
    """Draw each series of (step, loss) in its style, later ones on top; empty without two points of one series.

    Args:
        series: the style and the points of each line, by rising steps.
        max_steps: the step at the right edge.
        width: of the drawing, in cells, labels included.
    """
    drawn = [(style, points) for style, points in series if len(points) > 1]
    if not drawn:
        return Text()
    columns = width - LABEL_WIDTH
    losses = [loss for _, points in drawn for _, loss in points]
    low, high = min(losses), max(losses)
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for style, points in drawn:
        for x, y in _dots(points, low, high, max_steps, columns):
            bits, before = cells.get((y // 4, x // 2), (0, style))
            # Two lines in one cell share its style, that of the line on top.
            cells[y // 4, x // 2] = (bits if before == style else 0) | BRAILLE[x % 2][y % 4], style
    text = Text()
    for row in range(HEIGHT):
        share = row / (HEIGHT - 1)
        label = f"{high - share * (high - low):.2f}" if row in (0, HEIGHT // 2, HEIGHT - 1) else ""
        text.append(f"{label:>{LABEL_WIDTH - 1}} ", style="dim")
        for column in range(columns):
            bits, style = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + bits) if bits else " ", style=style)
        text.append("\n")
    last = f"{max_steps:,}"
    text.append(" " * LABEL_WIDTH + "0" + last.rjust(columns - 1), style="dim")
    return text


def _dots(points: Points, low: float, high: float, max_steps: int, columns: int) -> set[tuple[int, int]]:
    """Return the dots of a line through the points, which has no gaps however steep it is."""
    dots_x, dots_y = 2 * columns - 1, 4 * HEIGHT - 1

    def place(step: int, loss: float) -> tuple[float, float]:
        return dots_x * step / max_steps, dots_y * (high - loss) / (high - low) if high > low else dots_y / 2

    dots: set[tuple[int, int]] = set()
    for (left, top), (right, bottom) in pairwise(place(*point) for point in points):
        pieces = max(1, math.ceil(max(abs(right - left), abs(bottom - top))))
        for piece in range(pieces + 1):
            share = piece / pieces
            dots.add((round(left + share * (right - left)), round(top + share * (bottom - top))))
    return dots

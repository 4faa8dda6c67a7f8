"""Curves drawn with characters, for a terminal."""

import string
from collections.abc import Sequence

import numpy as np

from pipeline.compare.read import Floats

MARKS = string.ascii_lowercase + string.ascii_uppercase


def mark(i: int) -> str:
    """Return the character that stands for run `i`, from 0."""
    return MARKS[i % len(MARKS)]


def draw(curves: Sequence[tuple[Floats, Floats]], width: int = 72, height: int = 16) -> str:
    """Return the curves (x, y as float64[n] each) in one frame with axes; curve i is drawn with `MARKS[i]`.

    Points are joined by straight lines; where curves meet, `*` stands. Points that are not finite are left out;
    nothing finite gives an empty text.
    """
    points = [_finite(x, y) for x, y in curves]
    xs, ys = (np.concatenate([p[axis] for p in points]) if points else np.empty(0) for axis in (0, 1))
    if not len(xs):
        return ""
    grid = [[" "] * width for _ in range(height)]
    (x_low, x_high), (y_low, y_high) = (_range(values) for values in (xs, ys))
    for mark, (x, y) in zip(MARKS * (1 + len(points) // len(MARKS)), points, strict=False):
        if not len(x):
            continue
        places = (x - x_low) / (x_high - x_low) * (width - 1)
        columns = np.arange(round(places[0]), round(places[-1]) + 1)
        rows = np.rint((y_high - np.interp(columns, places, y)) / (y_high - y_low) * (height - 1)).astype(int)
        for column, row in zip(columns.tolist(), rows.tolist(), strict=True):
            grid[row][column] = mark if grid[row][column] == " " else "*"
    return _framed(grid, (x_low, x_high), (y_low, y_high))


def _finite(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def _range(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _framed(grid: list[list[str]], x: tuple[float, float], y: tuple[float, float]) -> str:
    last = len(grid) - 1
    labels = {row: f"{y[1] - (y[1] - y[0]) * row / last:.4g}" for row in (0, last // 2, last)}
    margin = max(map(len, labels.values()))
    lines = [f"{labels.get(row, ''):>{margin}} |{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
    width = len(grid[0])
    left, right = f"{x[0]:,.5g}", f"{x[1]:,.5g}"
    axis = f"{'':>{margin}} +{'-' * width}"
    return "\n".join([*lines, axis, f"{'':>{margin}}  {left}{right:>{width - len(left)}}"])

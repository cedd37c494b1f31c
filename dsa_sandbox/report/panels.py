"""What a plot draws, before it is drawn: panels of series, of a matrix, or of intervals.

charts.py and forest.py draw panels as text, pictures.py as SVG and PNG.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dsa_sandbox.report.looks import Look

LARGEST = 1e100  # differences and ticks of larger numbers overflow

Point = tuple[float, float]


class Series(NamedTuple):
    """A named row of points; a chart leaves out NaN and values beyond LARGEST.

    `low` and `high` are the ends of an interval at each point. Without a `look`, a series has that
    of its place in the chart.
    """

    name: str
    x: list[float]
    y: list[float]
    look: Look | None = None
    low: list[float] | None = None
    high: list[float] | None = None


class Interval(NamedTuple):
    """A contrast as a row of a forest plot: its mean, and an interval around it."""

    name: str
    mean: float
    low: float
    high: float
    p: float | None = None
    verdict: str = ""


class Panel(NamedTuple):
    """A chart: curves, points, a matrix of values in [0, 1], or intervals below each other.

    `thin` has a series of small marks for each of `series`. `base` is the value that means no
    change. `smallest` is the smallest effect of a forest plot: values within it are shaded.
    """

    form: Literal["curves", "points", "matrix", "forest"]
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    thin: Sequence[Series] = ()
    matrix: np.ndarray | None = None
    intervals: Sequence[Interval] = ()
    smallest: float | None = None
    base: float | None = None
    height: int = 20  # rows of the frame and its ticks as text


class Drawn(NamedTuple):
    """A plot as text, its points, and the panels that a picture draws."""

    text: str
    points: list[dict[str, Any]]
    panels: Sequence[Panel] = ()


def drawable(one: Series) -> list[Point]:
    """The points of a series that a chart can show."""
    found = []
    for x, y in zip(one.x, one.y, strict=True):
        if abs(x) <= LARGEST and abs(y) <= LARGEST:  # false for NaN
            found.append((x, y))
    return found


def band(one: Series) -> list[tuple[float, float, float]]:
    """x, low and high of the intervals of a series that a chart can show."""
    found = []
    for x, low, high in zip(one.x, one.low or (), one.high or ()):
        if all(abs(value) <= LARGEST for value in (x, low, high)):
            found.append((x, low, high))
    return found

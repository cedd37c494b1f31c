"""Charts as plain text, drawn by plotext: curves, scattered points and heat maps.

`height` counts the rows of the frame and its ticks; title, axis labels and legend come on top.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotext

from dsa_sandbox.report.wrapping import wrapped

MARKS = "ox+*#@%&$ABCDEFGHIJKLMNPQRSTUVWYZ"
COLOURS = (33, 208, 35, 161, 141, 37, 178, 244)  # of the 256; all seen on light and dark grounds
ASCII_SHADES, UNICODE_SHADES = ".:+#@", "·░▒▓█"  # no blank among them: blank says "no value"
SHADE_COLOURS = (61, 31, 36, 77, 220)  # dark blue to yellow, as viridis
LARGEST = 1e100  # beyond it there are no differences and no ticks to compute with
TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼", "-|+++++++++")

Entry = tuple[str, str, int]  # of a legend: mark, name, colour


class Series(NamedTuple):
    """A named row of points; those with a NaN, or beyond LARGEST, are left out."""

    name: str
    x: list[float]
    y: list[float]


class Drawn(NamedTuple):
    """A chart as text, and its points."""

    text: str
    points: list[dict[str, Any]]


class Page(NamedTuple):
    """What every chart is asked for, whatever it shows."""

    title: str
    x_label: str
    y_label: str
    width: int
    height: int
    colour: bool
    unicode: bool


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: list[Series],
    *,
    width: int,
    height: int = 20,
    colour: bool = False,
    unicode: bool = True,
) -> str:
    """Line chart; each series has its own mark, on every point or, where points crowd, on some."""
    page = Page(title, x_label, y_label, width, height, colour, unicode)
    return _draw_points(page, series, line="braille" if unicode else ".")


def scatter(
    title: str,
    x_label: str,
    y_label: str,
    points: list[Series],
    *,
    width: int,
    height: int = 20,
    colour: bool = False,
    unicode: bool = True,
) -> str:
    """Points without lines; each series has its own mark."""
    page = Page(title, x_label, y_label, width, height, colour, unicode)
    return _draw_points(page, points, line=None)


def heat_map(
    title: str,
    x_label: str,
    y_label: str,
    matrix: np.ndarray,
    *,
    width: int,
    height: int = 20,
    colour: bool = False,
    unicode: bool = True,
) -> str:
    """Values in [0, 1] as five shades, numbered where they fit; rows go down, counted from 1.

    NaN is blank.

    A matrix with more cells than the chart has room for is shown as the means of blocks of cells.
    """
    page = Page(title, x_label, y_label, width, height, colour, unicode)
    values = np.asarray(matrix, dtype=float)
    values = values if values.size else np.full((1, 1), np.nan)
    gutter = len(str(len(values)))
    most_rows, most_columns = max(1, height - 3), max(1, width - gutter - 2)
    y_blocks = np.array_split(np.arange(len(values)), min(len(values), most_rows))
    x_blocks = np.array_split(np.arange(values.shape[1]), min(values.shape[1], most_columns))
    cell_height = min(3, most_rows // len(y_blocks))
    cell_width = min(10, most_columns // len(x_blocks))
    rows, columns = cell_height * len(y_blocks), cell_width * len(x_blocks)
    tops = [rows - 1 - cell_height * i for i in range(len(y_blocks))]
    lefts = [cell_width * j for j in range(len(x_blocks))]
    shades = UNICODE_SHADES if unicode else ASCII_SHADES

    figure = _clean_figure(gutter + 2 + columns, rows + 3)
    for top, y_block in zip(tops, y_blocks, strict=True):
        for left, x_block in zip(lefts, x_blocks, strict=True):
            block = values[np.ix_(y_block, x_block)]
            if np.isnan(block).all():
                continue
            value = float(np.nanmean(block))
            level = int(np.clip(value * len(shades), 0, len(shades) - 1))
            marker = _marker(shades[level], SHADE_COLOURS[level])
            x, y = np.meshgrid(left + np.arange(cell_width), top - np.arange(cell_height))
            figure.draw(figure.signal(x.ravel().tolist(), y.ravel().tolist(), marker=marker))
            if cell_width >= 6:  # a number, with its shade on both sides
                column, row = left + (cell_width - 4) // 2, top - (cell_height - 1) // 2
                figure.draw(figure.text(column, row, f"{100 * value:^4.0f}", alignment="left"))
    x_ticks = [left + (cell_width - 1) // 2 for left in lefts]
    y_ticks = [top - (cell_height - 1) // 2 for top in tops]
    x_texts = [str(block[0] + 1) for block in x_blocks]
    every = math.ceil((len(x_texts[-1]) + 2) / cell_width)  # names need room between them
    _set_axis(figure, "x", (0, columns - 1), x_ticks[::every], x_texts[::every])
    _set_axis(figure, "y", (0, rows - 1), y_ticks, [str(block[0] + 1) for block in y_blocks])

    edges = [f"{edge:.1f}" for edge in np.linspace(0, 1, len(shades) + 1)]
    ranges = [f"{low}-{high}" for low, high in pairwise(edges)]
    notes = ["(blank: no value)", *(["(numbers: hundredths)"] if cell_width >= 6 else [])]
    if (len(y_blocks), len(x_blocks)) != values.shape:
        notes.append(f"(block means of a {values.shape[0]} x {values.shape[1]} matrix)")
    return _finish(page, figure, list(zip(shades, ranges, SHADE_COLOURS, strict=True)), notes)


def _draw_points(page: Page, series: list[Series], line: str | None) -> str:
    """A chart of every series' marks, over its line if `line` says what to draw that with."""
    pairs = [zip(one.x, one.y, strict=True) for one in series]
    points_of = [
        [point for point in pair if all(abs(value) <= LARGEST for value in point)] for pair in pairs
    ]
    xs, ys = (sorted({point[axis] for points in points_of for point in points}) for axis in (0, 1))
    rows = max(2, page.height - 3)
    y_ticks = _ticks(*_span(ys), most=max(3, rows // 2))
    y_texts = _texts(y_ticks)
    bottom, top = y_ticks[0], y_ticks[-1]
    columns = max(12, page.width - 2 - max(map(len, y_texts)))
    left, right = _span(xs)
    whole = all(float(x).is_integer() for x in xs)
    x_room = 4 if max(abs(left), abs(right)) < 100 else 9  # columns from tick to tick
    x_ticks = _ticks(left, right, most=columns // x_room, whole=whole)
    if whole:
        x_ticks = [tick for tick in x_ticks if left <= tick <= right]
    else:
        left, right = x_ticks[0], x_ticks[-1]
    margin = 3 * (right - left) / (columns - 7)  # three columns, for marks that step aside
    left, right = left - margin, right + margin

    figure = _clean_figure(page.width, rows + 3)
    _set_axis(figure, "x", (left, right), x_ticks, _texts(x_ticks))
    _set_axis(figure, "y", (bottom, top), y_ticks, y_texts)
    legend: list[Entry] = [
        (MARKS[number % len(MARKS)], one.name, COLOURS[number % len(COLOURS)])
        for number, one in enumerate(series)
    ]
    for points, (_, _, colour) in zip(points_of, legend, strict=True):
        if line and len(points) > 1:
            x, y = [x for x, _ in points], [y for _, y in points]
            figure.draw(figure.signal(x, y, marker=_marker(line, colour)).lines(True))

    # Marks come after all lines, to lie on top. One that would hide another steps aside, by less
    # than half the way to the next x; so six curves that start in one point still show six marks.
    column_width = (right - left) / (columns - 1)
    nearest = min((b - a for a, b in pairwise(xs)), default=math.inf)
    reach = int(np.clip((nearest / column_width - 1) / 2, 1, 3))
    taken: set[tuple[int, int]] = set()
    stepped_aside = False
    for number, (points, (mark, _, colour)) in enumerate(zip(points_of, legend, strict=True)):
        every = max(1, len(points) * 5 // columns) if line else 1
        first = number * every // len(series)  # long curves carry their marks at different places
        x, y = [], []
        for point in points[first::every]:
            column = int(0.5 + (point[0] - left) / column_width)
            row = int(0.5 + (top - point[1]) / (top - bottom) * (rows - 1))
            steps = sorted(range(-reach, reach + 1), key=abs)
            step = next((s for s in steps if (column + s, row) not in taken), 0)
            taken.add((column + step, row))
            stepped_aside |= step != 0
            x.append(left + (column + step) * column_width)
            y.append(point[1])
        figure.draw(figure.signal(x, y, marker=_marker(mark, colour)))
    notes = ["(marks of one place: side by side)"] if stepped_aside else []
    return _finish(page, figure, legend, notes)


def _clean_figure(width: int, height: int) -> Any:
    """plotext's one figure, emptied; left alone it shrinks to the terminal and paints it white."""
    plotext.terminal.limit(False, False)
    plotext.figure.clear()
    return plotext.figure.plot_size(width, height).theme("colorless")


def _marker(symbol: str, colour: int) -> Any:
    """What plotext draws a point or a line with."""
    return plotext.marker(symbol, plotext.pixel(foreground=colour))


def _set_axis(
    figure: Any, axis: str, limits: tuple[float, float], ticks: Sequence[float], texts: list[str]
) -> None:
    """Fix the limits and the ticks; plotext warns on stdout about limits that are equal."""
    low, high = limits
    figure.ruler(axis).lim(low, high if high > low else low + 1).ticks(ticks, texts)


def _span(values: list[float]) -> tuple[float, float]:
    """Lowest and highest of sorted values, pulled apart where they are one."""
    low, high = (values[0], values[-1]) if values else (0.0, 1.0)
    if high - low > max(1e-9 * max(abs(low), abs(high)), 1 / LARGEST):
        return low, high
    if 0 <= low <= 1:
        return 0.0, 1.0  # most of what is drawn are shares
    margin = max(abs(low) / 2, 1 / LARGEST)
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most about `most` round numbers, the outer two just beyond `low` and `high`."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))]
    step = next((step for step in steps if step >= rough * (1 - 1e-9)), steps[-1])
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _texts(ticks: list[float]) -> list[str]:
    """The ticks' names, with the same number of decimals, as few as tell them apart."""
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max((len(f"{tick:.5g}".partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _finish(page: Page, figure: Any, legend: list[Entry], notes: list[str]) -> str:
    """The drawn figure with title, labels and legend around it, no line wider than the page."""
    chart = figure.build().string(colorless=not page.colour).rstrip("\n").split("\n")
    middle = figure.size()[0]
    title, x_label = (
        [line.center(middle).rstrip() for line in wrapped(text, page.width)]
        for text in (page.title, page.x_label)
    )
    # No-break spaces hold an entry together that fits a line; colour has no width: it comes last.
    entries = [f"{mark}\u2007{name}" for mark, name, _ in legend] + notes
    entries = [e if len(e) > page.width else e.replace(" ", "\u00a0") for e in entries]
    below = wrapped("   ".join(entries), page.width)
    text = "\n".join(below)
    for mark, _, colour in legend if page.colour else []:
        coloured = plotext.colorize(mark).fill(plotext.pixel(colour)).string()
        text = text.replace(f"{mark}\u2007", f"{coloured} ")
    y_label = wrapped(page.y_label, page.width)
    lines = [*title, *y_label, *chart, *x_label, *text.split("\n")]
    text = "\n".join(line.rstrip() for line in lines).replace("\u00a0", " ").replace("\u2007", " ")
    return text if page.unicode else text.translate(TO_ASCII).encode("ascii", "replace").decode()

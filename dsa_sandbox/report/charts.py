"""Charts as plain text, drawn by plotext: curves, scattered points and heat maps.

`height` counts the rows of the frame and its ticks; title, axis labels and legend come on top.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotext

from dsa_sandbox.report import forest
from dsa_sandbox.report.looks import looks_in
from dsa_sandbox.report.panels import LARGEST, Drawn, Panel, Point, Series, band, drawable
from dsa_sandbox.report.wrapping import wrapped

SMALL = "·"
ASCII_SHADES = ".:+#@"  # no blank: a blank cell has no value
UNICODE_SHADES = "·░▒▓█"
SHADE_COLOURS = (61, 31, 36, 77, 220)  # dark blue to yellow, as viridis
TO_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼", "-|+++++++++")

Entry = tuple[str, str, int]  # mark, name and colour in a legend


class Page(NamedTuple):
    """Title, labels, size and style of a chart."""

    title: str
    x_label: str
    y_label: str
    width: int
    height: int
    colour: bool
    unicode: bool
    base: float | None = None


def drawn(panels: Sequence[Panel], points: list[dict[str, Any]], style: dict[str, Any]) -> Drawn:
    """The panels as text in the style of a terminal: its width, and whether it has colours."""
    return Drawn("\n\n".join(text_of(panel, **style) for panel in panels), points, panels)


def text_of(panel: Panel, **style: Any) -> str:
    """A panel as text; `style` holds width, colour and unicode."""
    labels = (panel.title, panel.x_label, panel.y_label)
    more = {"height": panel.height, **style}
    if panel.form == "matrix":
        assert panel.matrix is not None
        return heat_map(*labels, panel.matrix, **more)
    if panel.form == "points":
        return scatter(*labels, panel.series, base=panel.base, **more)
    if panel.form == "forest":
        return forest.text_of(panel, width=style["width"], unicode=style.get("unicode", True))
    return curves(*labels, panel.series, thin=panel.thin, base=panel.base, **more)


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    width: int,
    height: int = 20,
    colour: bool = False,
    unicode: bool = True,
    thin: Sequence[Series] = (),
    base: float | None = None,
) -> str:
    """Line chart; each series has its own mark on every point, or on some where points crowd.

    The points of `thin`, a series for each of the others, lie below as small marks of its colour,
    and so do intervals. A level line lies at `base` where the axis reaches it.
    """
    page = Page(title, x_label, y_label, width, height, colour, unicode, base)
    return _draw_points(page, series, "braille" if unicode else ".", thin)


def scatter(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Series],
    *,
    width: int,
    height: int = 20,
    colour: bool = False,
    unicode: bool = True,
    base: float | None = None,
) -> str:
    """Points without lines; each series has its own mark. A level line lies at `base`."""
    page = Page(title, x_label, y_label, width, height, colour, unicode, base)
    return _draw_points(page, points, None, [])


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

    NaN is blank. A matrix with more cells than fit is shown as means of blocks of cells.
    """
    page = Page(title, x_label, y_label, width, height, colour, unicode)
    values = np.asarray(matrix, dtype=float)
    values = values if values.size else np.full((1, 1), np.nan)
    gutter = len(str(len(values)))
    most_rows = max(1, height - 3)
    most_columns = max(1, width - gutter - 2)
    y_blocks = np.array_split(np.arange(len(values)), min(len(values), most_rows))
    x_blocks = np.array_split(np.arange(values.shape[1]), min(values.shape[1], most_columns))
    cell_height = min(3, most_rows // len(y_blocks))
    cell_width = min(10, most_columns // len(x_blocks))
    rows = cell_height * len(y_blocks)
    columns = cell_width * len(x_blocks)
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
                column = left + (cell_width - 4) // 2
                row = top - (cell_height - 1) // 2
                figure.draw(figure.text(column, row, f"{100 * value:^4.0f}", alignment="left"))
    x_ticks = [left + (cell_width - 1) // 2 for left in lefts]
    y_ticks = [top - (cell_height - 1) // 2 for top in tops]
    x_texts = [str(block[0] + 1) for block in x_blocks]
    every = math.ceil((len(x_texts[-1]) + 2) / cell_width)  # room between the names
    _set_axis(figure, "x", (0, columns - 1), x_ticks[::every], x_texts[::every])
    _set_axis(figure, "y", (0, rows - 1), y_ticks, [str(block[0] + 1) for block in y_blocks])

    edges = [f"{edge:.1f}" for edge in np.linspace(0, 1, len(shades) + 1)]
    ranges = [f"{low}-{high}" for low, high in pairwise(edges)]
    notes = ["(blank: no value)", *(["(numbers: hundredths)"] if cell_width >= 6 else [])]
    if (len(y_blocks), len(x_blocks)) != values.shape:
        notes.append(f"(block means of a {values.shape[0]} x {values.shape[1]} matrix)")
    return _finish(page, figure, list(zip(shades, ranges, SHADE_COLOURS, strict=True)), notes)


def _draw_points(
    page: Page, series: Sequence[Series], line: str | None, thin: Sequence[Series]
) -> str:
    """A chart of every series' marks, over lines drawn with `line` where it is given."""
    points_of = [drawable(one) for one in series]
    small_of = [drawable(one) for one in thin]
    bands_of = [band(one) for one in series]
    ends_of = [[(x, end) for x, *ends in found for end in ends] for found in bands_of]
    xs = _coordinates(points_of + small_of + ends_of, 0)
    ys = _coordinates(points_of + small_of + ends_of, 1)
    rows = max(2, page.height - 3)
    y_ticks = _ticks(*_span(ys), most=max(3, rows // 2))
    y_texts = _texts(y_ticks)
    columns = max(12, page.width - 2 - max(len(text) for text in y_texts))
    left, right, x_ticks = _x_axis(xs, columns)
    figure = _clean_figure(page.width, rows + 3)
    _set_axis(figure, "x", (left, right), x_ticks, _texts(x_ticks))
    _set_axis(figure, "y", (y_ticks[0], y_ticks[-1]), y_ticks, y_texts)
    looks = looks_in([one.look for one in series])
    legend = [(look.mark, one.name, look.colour) for look, one in zip(looks, series)]
    small = SMALL if page.unicode else "."
    if page.base is not None and y_ticks[0] < page.base < y_ticks[-1]:
        level = [(left, page.base), (right, page.base)]
        _draw_signal(figure, level, _marker("┄" if page.unicode else "-", 0), lines=True)
    row_height, column = (y_ticks[-1] - y_ticks[0]) / (rows - 1), (right - left) / (columns - 1)
    for number, (found, (_, _, colour)) in enumerate(zip(bands_of, legend)):
        aside = column * (number - (len(legend) - 1) // 2)  # intervals of one x: side by side
        points = [(x + aside, y) for x, y in _filled(found, row_height)]
        _draw_signal(figure, points, _marker(small, colour))
    for points, (_, _, colour) in zip(small_of, legend):
        _draw_signal(figure, points, _marker(small, colour))
    for points, (_, _, colour) in zip(points_of, legend, strict=True):
        if line and len(points) > 1:
            _draw_signal(figure, points, _marker(line, colour), lines=True)

    grid = _Grid(left, right, columns, y_ticks[0], y_ticks[-1], rows, xs)
    # marks come after all lines, to lie on top
    for number, (points, (mark, _, colour)) in enumerate(zip(points_of, legend, strict=True)):
        every = max(1, len(points) * 5 // columns) if line else 1
        first = number * every // len(series)  # long curves carry their marks at different places
        placed = [grid.place(point) for point in points[first::every]]
        _draw_signal(figure, placed, _marker(mark, colour))
    notes = ["(marks of one place: side by side)"] if grid.stepped_aside else []
    notes += [f"{small} tasks"] if any(small_of) else []
    notes += [f"{small} intervals"] if any(bands_of) else []
    return _finish(page, figure, legend, notes)


def _x_axis(xs: list[float], columns: int) -> tuple[float, float, list[float]]:
    """Left and right end of the x axis, with room for marks that step aside, and its ticks."""
    left, right = _span(xs)
    whole = all(float(x).is_integer() for x in xs)
    for most in range(columns // 4, 1, -1):
        x_ticks = _ticks(left, right, most=most, whole=whole)
        if whole:
            x_ticks = [tick for tick in x_ticks if left <= tick <= right]
        longest = max(map(len, _texts(x_ticks)), default=0)
        if (longest + 2) * len(x_ticks) <= columns:
            break
    if not whole:
        left = x_ticks[0]
        right = x_ticks[-1]
    margin = 3 * (right - left) / (columns - 7)  # three columns
    return left - margin, right + margin, x_ticks


def _filled(bands: list[tuple[float, float, float]], step: float) -> list[Point]:
    """Points from low to high at each x, a row of the chart apart."""
    found = []
    for x, low, high in bands:
        steps = max(1, round((high - low) / step)) if step else 1
        found += [(x, low + (high - low) * number / steps) for number in range(steps + 1)]
    return found


class _Grid:
    """The character cells of a chart. A mark that would hide another steps aside.

    The step is less than half the way to the next x, so six curves that start in one point still
    show six marks.
    """

    def __init__(
        self,
        left: float,
        right: float,
        columns: int,
        bottom: float,
        top: float,
        rows: int,
        xs: list[float],
    ) -> None:
        self.left = left
        self.top = top
        self.height = top - bottom
        self.rows = rows
        self.column_width = (right - left) / (columns - 1)
        nearest = min((b - a for a, b in pairwise(xs)), default=math.inf)
        reach = int(np.clip((nearest / self.column_width - 1) / 2, 1, 3))
        self.steps = sorted(range(-reach, reach + 1), key=abs)
        self.taken: set[tuple[int, int]] = set()
        self.stepped_aside = False

    def place(self, point: Point) -> Point:
        """Where the mark of a point is drawn."""
        column = int(0.5 + (point[0] - self.left) / self.column_width)
        row = int(0.5 + (self.top - point[1]) / self.height * (self.rows - 1))
        free = (step for step in self.steps if (column + step, row) not in self.taken)
        step = next(free, 0)
        self.taken.add((column + step, row))
        self.stepped_aside |= step != 0
        return self.left + (column + step) * self.column_width, point[1]


def _coordinates(points_of: list[list[Point]], axis: int) -> list[float]:
    """All values on an axis, sorted, each once."""
    return sorted({point[axis] for points in points_of for point in points})


def _draw_signal(figure: Any, points: list[Point], marker: Any, *, lines: bool = False) -> None:
    """Draw the points with a marker, and lines between them where asked."""
    x = [point[0] for point in points]
    y = [point[1] for point in points]
    signal = figure.signal(x, y, marker=marker)
    figure.draw(signal.lines(True) if lines else signal)


def _clean_figure(width: int, height: int) -> Any:
    """The global figure of plotext, emptied; by default it has the size of the terminal."""
    plotext.terminal.limit(False, False)
    plotext.figure.clear()
    return plotext.figure.plot_size(width, height).theme("colorless")


def _marker(symbol: str, colour: int) -> Any:
    """A symbol and colour as plotext takes them."""
    return plotext.marker(symbol, plotext.pixel(foreground=colour))


def _set_axis(
    figure: Any, axis: str, limits: tuple[float, float], ticks: Sequence[float], texts: list[str]
) -> None:
    """Set limits and ticks; plotext prints a warning about equal limits."""
    low, high = limits
    figure.ruler(axis).lim(low, high if high > low else low + 1).ticks(ticks, texts)


def _span(values: list[float]) -> tuple[float, float]:
    """Lowest and highest of sorted values, moved apart where they are equal."""
    low, high = (values[0], values[-1]) if values else (0.0, 1.0)
    if high - low > max(1e-9 * max(abs(low), abs(high)), 1 / LARGEST):
        return low, high
    if 0 <= low <= 1:
        return 0.0, 1.0  # most figures are shares
    margin = max(abs(low) / 2, 1 / LARGEST)
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most about `most` round numbers, the outer two just beyond `low` and `high`."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))]
    step = next((step for step in steps if step >= rough * (1 - 1e-9)), steps[-1])
    step = max(1.0, step) if whole else step
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _texts(ticks: list[float]) -> list[str]:
    """The ticks as text, with one number of decimals, as few as keep them different."""
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max((len(f"{tick:.5g}".partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _centred(text: str, width: int, middle: int) -> list[str]:
    """The text in lines of a width, centred on the columns of the chart."""
    return [line.center(middle).rstrip() for line in wrapped(text, width)]


def _finish(page: Page, figure: Any, legend: list[Entry], notes: list[str]) -> str:
    """The drawn figure with title, labels and legend around it, no line wider than the page."""
    chart = figure.build().string(colorless=not page.colour).rstrip("\n").split("\n")
    middle = figure.size()[0]
    title = _centred(page.title, page.width, middle)
    x_label = _centred(page.x_label, page.width, middle)
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

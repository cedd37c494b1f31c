"""A forest plot as text: a row for each contrast, its interval and mean on one axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len

from dsa_sandbox.report.numbers import number, signed
from dsa_sandbox.report.panels import LARGEST, Interval, Panel
from dsa_sandbox.report.wrapping import wrapped

LEAST_PLOT = 18  # columns of the axis
SIGNS = ("line", "low", "high", "mean", "zero", "cross", "band")
UNICODE, ASCII = dict(zip(SIGNS, "─├┤●│┼░")), dict(zip(SIGNS, "-[]o|+:"))
# an interval that goes on beyond the axis
ON = {"left": "<", "right": ">"}


class Axis(NamedTuple):
    """The columns of the axis and what they stand for."""

    low: float
    high: float
    columns: int

    def column(self, value: float) -> int:
        """The column of a value, at an end of the axis where the value lies beyond it."""
        share = (value - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * (self.columns - 1))


def known(one: Interval) -> bool:
    """Whether a contrast has a mean; its interval may be open."""
    return abs(one.mean) <= LARGEST


def extent(intervals: Sequence[Interval], smallest: float | None) -> tuple[float, float]:
    """Lowest and highest value to be shown: all ends, zero, and the smallest effect both ways."""
    values = [0.0, smallest or 0.0, -(smallest or 0.0)]
    for one in intervals:
        values += [v for v in (one.mean, one.low, one.high) if abs(v) <= LARGEST]
    low, high = min(values), max(values)
    if low == high:
        return -1.0, 1.0
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def figures(one: Interval) -> str:
    """Mean, interval and p in figures."""
    if not known(one):
        return "-"
    text = f"{signed(one.mean, 3)} [{signed(one.low, 3)}, {signed(one.high, 3)}]"
    return text if one.p is None else f"{text} p {number(one.p, 3)}"


def row(one: Interval, axis: Axis, smallest: float | None, signs: dict[str, str]) -> str:
    """The axis of one contrast: its interval over the smallest effect and the line of zero."""
    cells = [" "] * axis.columns
    if smallest:
        for column in range(axis.column(-smallest), axis.column(smallest) + 1):
            cells[column] = signs["band"]
    cells[axis.column(0)] = signs["zero"]
    if known(one):
        low, high = axis.column(one.low), axis.column(one.high)
        for column in range(low, high + 1):
            cells[column] = signs["cross" if column == axis.column(0) else "line"]
        cells[low] = signs["low"] if one.low >= axis.low else ON["left"]
        cells[high] = signs["high"] if one.high <= axis.high else ON["right"]
        cells[axis.column(one.mean)] = signs["mean"]
    return "".join(cells)


def ruler(axis: Axis, smallest: float | None) -> str:
    """The ends of the axis, zero, and the smallest effect where there is room for its text."""
    cells = [" "] * axis.columns
    step = 10.0 ** math.floor(math.log10((axis.high - axis.low) / 2))
    marks = [0.0, *([-smallest, smallest] if smallest else [])]
    marks += [math.ceil(axis.low / step) * step, math.floor(axis.high / step) * step]
    for value in marks:
        text = "0" if abs(value) < step / 1e6 else f"{value:+.3g}"
        start = min(max(axis.column(value) - len(text) // 2, 0), axis.columns - len(text))
        around = cells[max(start - 1, 0) : start + len(text) + 1]
        if set(around) == {" "}:
            cells[start : start + len(text)] = text
    return "".join(cells)


def text_of(panel: Panel, *, width: int, unicode: bool = True) -> str:
    """The panel as text: names left, figures right, or above the axis where the width is small."""
    signs = UNICODE if unicode else ASCII
    shown = panel.intervals
    names = max((cell_len(one.name) for one in shown), default=0)
    ends = [f"{figures(one)} {one.verdict}".rstrip() for one in shown]
    rest = max(map(len, ends), default=0)
    beside = width - names - rest - 4 >= LEAST_PLOT
    columns = width - names - rest - 4 if beside else width - 2
    axis = Axis(*extent(shown, panel.smallest), columns)
    lines = wrapped(panel.title, width)
    for one, end in zip(shown, ends):
        drawn = row(one, axis, panel.smallest, signs)
        if beside:
            lines.append(f"{one.name}{' ' * (names - cell_len(one.name))}  {drawn}  {end}".rstrip())
        else:
            lines += [*wrapped(f"{one.name}: {end}", width, "  "), f"  {drawn}".rstrip()]
    left = names + 2 if beside else 2
    lines.append(f"{' ' * left}{ruler(axis, panel.smallest)}".rstrip())
    about = [panel.x_label] if panel.x_label else []
    if panel.smallest:
        about.append(f"{signs['band']} within the smallest effect, {panel.smallest:g}")
    lines += wrapped("; ".join(about), width)
    text = "\n".join(lines)
    return text if unicode else text.encode("ascii", "replace").decode()

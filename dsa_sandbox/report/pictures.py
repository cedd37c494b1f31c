"""The panels of a plot as an SVG or PNG, drawn by altair and vl-convert: `plot --save x.svg`.

A panel is as wide as a column of a paper; names and looks of series are those of the terminal.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsa_sandbox.config import paths
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.report.forest import extent, figures, known
from dsa_sandbox.report.looks import Look, looks_in
from dsa_sandbox.report.panels import Panel, Point, band, drawable

ENDINGS = (".svg", ".png")
NEEDED = ("altair", "vl_convert")
INSTALL = "python -m pip install 'dsa-sandbox[plot]'"
WIDTH, HEIGHT = 240, 160  # of the frame of a panel, pixels; 72 are an inch on paper
TITLE_WIDTH = 54  # characters in a line of a title
PNG_PPI = 300
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with vl-convert
INK, FAINT = "#333333", "#d9d9d9"
SPREAD = 0.012  # share of the x axis by which small marks of neighbouring series stand apart


def check_file(path: Path, other: str, what: str) -> None:
    """UserError where --save names no file that can be written: a picture, or one in `other`.

    `what` says which ending makes the other one.
    """
    paths.named(path, "--save")
    ending = path.suffix.lower()
    if ending not in (other, *ENDINGS):
        raise UserError(
            f"--save {path}: end the name in {' or '.join(ENDINGS)} for a picture, in {what}"
        )
    if path.is_dir():
        raise UserError(f"--save {path}: a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--save {path}: the folder {path.parent} does not exist")
    if ending in ENDINGS:
        check_extra(path)


def check_extra(save: Path) -> None:
    """UserError, with the command that installs them, where the drawing packages are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--save {save}: pictures need {' and '.join(missing)}; run first: {INSTALL}"
        )


def save(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels below each other, or in two columns where there are many."""
    ending = path.suffix.lower().removeprefix(".")
    try:
        document(panels).save(
            str(path), format=ending, **({"ppi": PNG_PPI} if ending == "png" else {})
        )
    except OSError as error:
        raise UserError(f"--save {path}: cannot be written: {reason(error)}") from None


def document(panels: Sequence[Panel]) -> Any:
    """The panels as one altair chart with one legend."""
    import altair as alt

    looks = named_looks(panels)
    lines = max(len(below(panel.title)) for panel in panels)
    charts = [
        of_panel(panel, looks).properties(title=titled(panel.title, lines)) for panel in panels
    ]
    columns = 1 if len(charts) <= 2 and panels[0].form != "matrix" else 2
    whole = charts[0] if len(charts) == 1 else alt.concat(*charts, columns=columns, spacing=18)
    return configured(whole, in_legend(list(looks), min(columns, len(charts))))


def named_looks(panels: Sequence[Panel]) -> dict[str, Look]:
    """The look of every series by its name, the same in all panels."""
    found: dict[str, Look | None] = {}
    for panel in panels:
        for one in panel.series:
            found.setdefault(one.name, one.look)
    return dict(zip(found, looks_in(list(found.values()))))


def in_legend(names: list[str], columns: int) -> int:
    """Columns of a legend below so many columns of panels."""
    longest = max(map(len, names), default=0)
    return max(1, min(len(names), int(columns * WIDTH / (26 + 4.7 * longest))))


def configured(chart: Any, columns: int) -> Any:
    """The chart in one style: small sans-serif text, no grid, legends below in columns."""
    return (
        chart.configure(font=FONT, background="white", padding=6)
        .configure_view(stroke=INK, strokeWidth=0.6)
        .configure_axis(
            grid=False,
            domain=False,
            tickColor=INK,
            tickSize=4,
            labelColor=INK,
            labelFontSize=9.5,
            titleColor=INK,
            titleFontSize=10.5,
            titleFontWeight="normal",
            titlePadding=6,
        )
        .configure_title(
            anchor="start",
            frame="group",
            color=INK,
            fontSize=11,
            fontWeight="bold",
            subtitleColor=INK,
            subtitleFontSize=9.5,
            subtitlePadding=3,
            offset=8,
        )
        .configure_legend(
            orient="bottom",
            title=None,
            columns=columns,
            labelColor=INK,
            labelFontSize=9.5,
            labelLimit=400,
            symbolSize=55,
            symbolStrokeWidth=1.4,
            columnPadding=14,
            rowPadding=3,
            offset=8,
        )
    )


def parts_of(title: str) -> tuple[str, str]:
    """What stands before and after the first colon of a title."""
    head, _, rest = title.partition(": ")
    return head, rest


def below(title: str) -> list[str]:
    """The lines of a title's second part."""
    rest = parts_of(title)[1]
    return textwrap.wrap(rest[:1].upper() + rest[1:], TITLE_WIDTH)


def titled(title: str, lines: int) -> Any:
    """A title with so many lines of smaller text below, so that panels side by side are level."""
    import altair as alt

    told = below(title)
    head = textwrap.wrap(parts_of(title)[0], TITLE_WIDTH * 5 // 6)
    return alt.TitleParams(head, subtitle=told + [""] * (lines - len(told)))


def of_panel(panel: Panel, looks: dict[str, Look]) -> Any:
    """A panel as an altair chart, without title and style."""
    if panel.form == "matrix":
        return of_matrix(panel)
    return of_forest(panel) if panel.form == "forest" else of_series(panel, looks)


def tint(rgb: str) -> str:
    """A colour half way to white."""
    parts = [int(rgb[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{(part + 255) // 2:02x}" for part in parts)


def fill_of(look: Look) -> str:
    """What a shape is filled with."""
    return {"full": look.rgb, "hollow": "#ffffff", "tint": tint(look.rgb)}[look.fill]


def as_rows(points: Sequence[Point]) -> Any:
    """Points as altair data, in their order."""
    import altair as alt

    rows = [{"x": x, "y": y, "order": order} for order, (x, y) in enumerate(points)]
    return alt.Chart(alt.Data(values=rows))


def spread(panel: Panel) -> list[list[Point]]:
    """The small marks of each series, a little beside those of the others."""
    points_of = [drawable(one) for one in panel.thin]
    xs = [x for points in points_of for x, _ in points]
    step = SPREAD * ((max(xs) - min(xs)) or 1.0) if xs else 0.0
    found = []
    for number, points in enumerate(points_of):
        aside = step * (number - (len(points_of) - 1) / 2)
        found.append([(x + aside, y) for x, y in points])
    return found


def of_series(panel: Panel, looks: dict[str, Look]) -> Any:
    """Curves or points over bands of intervals, small marks and the line of no change.

    Only the marks are drawn by scales, which the legend shows: dashes and faint colours would show
    in it as well.
    """
    import altair as alt

    points_of = {one.name: drawable(one) for one in panel.series}
    small_of = spread(panel)
    bands_of = {one.name: band(one) for one in panel.series}
    every = [point for points in [*points_of.values(), *small_of] for point in points]
    ends = [(x, end) for found in bands_of.values() for x, *both in found for end in both]
    x = axis_of("x", panel.x_label, [point[0] for point in every + ends])
    values = [point[1] for point in every + ends]
    y = axis_of("y", panel.y_label, values, base=panel.base)
    layers = []
    if panel.base is not None and within(panel.base, values):
        level = alt.Chart(alt.Data(values=[{"y": panel.base}]))
        layers.append(level.mark_rule(stroke=INK, strokeWidth=0.7).encode(y=y))
    for name, found in bands_of.items():
        rows = alt.Data(values=[{"x": at, "y": low, "high": high} for at, low, high in found])
        area = alt.Chart(rows).mark_area(color=looks[name].rgb, opacity=0.16)
        layers += [area.encode(x=x, y=y, y2="high:Q")] if found else []
    for one, small in zip(panel.series, small_of):
        dots = as_rows(small).mark_circle(color=looks[one.name].rgb, size=9, opacity=0.5)
        layers.append(dots.encode(x=x, y=y))
    for name, points in points_of.items() if panel.form == "curves" else ():
        look = looks[name]
        line = as_rows(points).mark_line(
            color=look.rgb, strokeDash=list(look.dash), strokeWidth=1.4
        )
        layers.append(line.encode(x=x, y=y, order="order:Q"))
    layers.append(marks_of(points_of, looks).encode(x=x, y=y))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def marks_of(points_of: dict[str, list[Point]], looks: dict[str, Look]) -> Any:
    """The marks of all series, with the legend."""
    import altair as alt

    rows = []
    for name, points in points_of.items():
        rows += [{"series": name, "x": x, "y": y} for x, y in points]

    def by_name(values: list[str]) -> Any:
        return alt.Scale(domain=list(looks), range=values)

    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(size=34, strokeWidth=1.3, opacity=1)
        .encode(
            stroke=alt.Stroke("series:N", scale=by_name([look.rgb for look in looks.values()])),
            fill=alt.Fill("series:N", scale=by_name([fill_of(look) for look in looks.values()])),
            shape=alt.Shape("series:N", scale=by_name([look.shape for look in looks.values()])),
        )
    )


def within(value: float, values: Sequence[float]) -> bool:
    """Whether a value lies where values are drawn, or near."""
    low, high = min(values, default=value), max(values, default=value)
    reach = 0.25 * (high - low)
    return low - reach <= value <= high + reach


def axis_of(channel: str, title: str, values: Sequence[float], base: float | None = None) -> Any:
    """An axis with a few round ticks, whole ones for x where all values are whole.

    Zero is on it only where values are; shares that are all alike are drawn from 0 to 1.
    """
    import altair as alt

    ends = [*values, *([base] if base is not None and within(base, values) else [])]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if low == high and 0 <= low <= 1:
        low, high = 0.0, 1.0
    margin = 0.05 * ((high - low) or 1.0)
    more: dict[str, Any] = {"tickCount": 6}
    if channel == "x" and all(float(value).is_integer() for value in values):
        whole = range(int(low), int(high) + 1)
        more = {"values": list(whole), "format": "d"} if len(whole) <= 13 else {"tickCount": 5}
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False, zero=False)
    make = alt.X if channel == "x" else alt.Y
    return make(f"{channel}:Q", scale=scale, axis=alt.Axis(title=title, **more))


def of_matrix(panel: Panel) -> Any:
    """Values in [0, 1] as shades, with hundredths where there is room; rows go down from 1."""
    import altair as alt

    assert panel.matrix is not None
    rows = []
    for (down, right), value in np.ndenumerate(np.asarray(panel.matrix, dtype=float)):
        if not np.isnan(value):
            rows.append({"x": right + 1, "y": down + 1, "value": float(value)})
    tall, wide = panel.matrix.shape
    side = WIDTH * 0.75
    room = min(side / max(tall, 1), side / max(wide, 1))
    every = max(1, round(max(tall, wide) / 10))
    shown = [number for number in range(1, max(tall, wide) + 1) if (number - 1) % every == 0]
    axis = alt.Axis(values=shown, labelAngle=0, ticks=False)
    x = alt.X("x:O", title=panel.x_label, axis=axis, scale=alt.Scale(domain=range_to(wide)))
    y = alt.Y("y:O", title=panel.y_label, axis=axis, scale=alt.Scale(domain=range_to(tall)))
    shades = alt.Color(
        "value:Q",
        scale=alt.Scale(domain=[0, 1], scheme="cividis"),
        legend=alt.Legend(orient="right", title=None, gradientLength=100, gradientThickness=9),
    )
    cells = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    layers = [cells.mark_rect().encode(color=shades)]
    if room >= 14:
        light = alt.condition("datum.value > 0.55", alt.value("#111111"), alt.value("#ffffff"))
        numbers = cells.transform_calculate(hundredths="round(100 * datum.value)")
        size = min(9.5, room * 0.55)
        layers.append(numbers.mark_text(fontSize=size).encode(text="hundredths:Q", color=light))
    return alt.layer(*layers).properties(width=side, height=side)


def range_to(last: int) -> list[int]:
    """1 to last."""
    return list(range(1, last + 1))


def of_forest(panel: Panel) -> Any:
    """A row for each contrast: interval and mean, figures right, the smallest effect as a band."""
    import altair as alt

    shown = [one for one in panel.intervals if known(one)]
    low, high = extent(shown, panel.smallest)
    rows: list[dict[str, Any]] = []
    for one in panel.intervals:
        # a row is known by its name: spaces without width keep equal names apart
        alike = sum(other["name"].rstrip("\u200b") == one.name for other in rows)
        ends = {
            "name": one.name + "\u200b" * alike,
            "text": f"{figures(one)} {one.verdict}".rstrip(),
        }
        if known(one):
            ends |= {"mean": one.mean, "low": max(one.low, low), "high": min(one.high, high)}
        rows.append(ends)
    names = [row["name"] for row in rows]
    data = alt.Chart(alt.Data(values=rows))
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    axis = alt.Axis(title=panel.x_label or None, tickCount=6)
    y = alt.Y(
        "name:N",
        sort=names,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(title=None, ticks=False, labelLimit=400),
    )
    layers = []
    if panel.smallest:
        band_of = [{"low": -panel.smallest, "high": panel.smallest}]
        shade = alt.Chart(alt.Data(values=band_of)).mark_rect(color=FAINT, opacity=0.55)
        layers.append(shade.encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"))
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(stroke=INK, strokeWidth=0.7)
    layers.append(zero.encode(x=alt.X("at:Q", scale=scale, axis=axis)))
    rules = data.mark_rule(strokeWidth=1.4, color=INK)
    layers.append(rules.encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q", y=y))
    means = data.mark_point(filled=True, size=52, color=INK, opacity=1, shape="square")
    layers.append(means.encode(x=alt.X("mean:Q", scale=scale, axis=axis), y=y))
    texts = data.mark_text(align="left", fontSize=9, color=INK, dx=6)
    layers.append(texts.encode(x=alt.value(WIDTH * 0.72), y=y, text="text:N"))
    return alt.layer(*layers).properties(width=WIDTH * 0.72, height=alt.Step(20))

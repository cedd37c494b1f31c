"""The tables and charts of a tuning, as text."""

import math
from typing import Any

from dsa_sandbox.report.charts import curves
from dsa_sandbox.report.looks import looks_of
from dsa_sandbox.report.numbers import number, signed
from dsa_sandbox.report.panels import Series
from dsa_sandbox.report.wrapping import folded, plain, rendered
from dsa_sandbox.tuning.choices import LEVELS

GAP = 2  # spaces between two columns of a table
HEIGHT = 12  # rows of a chart


def screen(report: dict[str, Any], style: dict[str, Any]) -> str:
    """The tables of single tasks, of H2c over the grid and of the stream, charts, and remarks."""
    width = style["width"]
    parts = []
    if report["single"]:
        parts.append(f"Single tasks: one rate per strategy\n\n{single_table(report, width)}")
        grid = [row for row in report["single"] if row["tasks"] == report["tasks"]["first"]]
        parts += [damage_chart(grid, style), steps_chart(grid, style)]
    if report["interaction"]:
        title = (
            f"H2c at {report['interaction_level']:g}: [dsa acft - dsa sgd] - [control ...], nats"
        )
        parts.append(f"{title}\n\n{interaction_tables(report['interaction'], width)}")
        parts.append(interaction_chart(report["interaction"], style))
    if report["stream"]:
        level = report["stream_level"]
        parts.append(f"Stream at level {level:g}\n\n{stream_table(report['stream'], width)}")
    if report["level"] is not None:
        parts.append(f"Level: {report['level']:g}.")
    parts += [folded(remark, width) for remark in report["remarks"]]
    return "\n\n".join(part for part in parts if part)


def star(row: dict[str, Any]) -> str:
    """The mark of a chosen row."""
    return "*" if row["chosen"] else ""


def single_table(report: dict[str, Any], width: int) -> str:
    """A row for each strategy, rate, architecture and number of tasks; a star for the choice."""
    table = plain(GAP)
    for name in ("strategy", "rate", "", "arch"):
        table.add_column(name, no_wrap=True)
    heads = [f"{level:g}" for level in reversed(LEVELS)]
    for name in (*heads, "steps to .7", "damage"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["single"]:
        reached = [f"{row[f'reached_{level}']}/{row['tasks']}" for level in heads]
        figures = (number(row["steps"], 0), number(row["damage"], 3))
        first = (row["strategy"], f"{row['rate']:g}", star(row), row["arch"])
        table.add_row(*first, *reached, *(("diverged", "") if row["diverged"] else figures))
    return rendered(table, width)


def interaction_tables(rows: list[dict[str, Any]], width: int) -> str:
    """For each control: a row for each rate of sgd, a column for each rate of acft."""
    parts = []
    for control in dict.fromkeys(row["control"] for row in rows):
        own = [row for row in rows if row["control"] == control]
        table = plain(GAP)
        table.add_column(f"control {control}", no_wrap=True)
        for fast in dict.fromkeys(row["rate_acft"] for row in own):
            table.add_column(f"acft {fast:g}", justify="right", no_wrap=True)
        for slow in dict.fromkeys(row["rate_sgd"] for row in own):
            cells = [row for row in own if row["rate_sgd"] == slow]
            table.add_row(
                f"sgd {slow:g}", *(f"{signed(row['value'], 3)}{star(row)}" for row in cells)
            )
        parts.append(rendered(table, width))
    return "\n\n".join(parts)


def stream_table(rows: list[dict[str, Any]], width: int) -> str:
    """A row for each configuration and number of tasks; the best of each arm has a star."""
    table = plain(GAP)
    for name in ("arch", "strategy", "configuration", ""):
        table.add_column(name, no_wrap=True)
    for name in ("reached", "drift", "lost", "sum"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        config = ", ".join(f"{key.split('.')[1]} {value:g}" for key, value in row["config"].items())
        figures = (signed(row["drift"], 3), signed(row["lost"], 3), number(row["sum"], 1))
        reached = f"{row['reached']}/{row['tasks']}"
        table.add_row(row["arch"], row["strategy"], config, star(row), reached, *figures)
    return rendered(table, width)


def by_arm(rows: list[dict[str, Any]], key: str) -> list[Series]:
    """A figure over the rate, in 1e-4, for each architecture and strategy."""
    points: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for row in rows:
        x, y = points.setdefault((row["arch"], row["strategy"]), ([], []))
        x.append(1e4 * row["rate"])
        y.append(row[key])
    looks = looks_of(list(points))
    return [Series(" ".join(arm), *points[arm], look) for arm, look in zip(points, looks)]


def chart(title: str, x: str, y: str, series: list[Series], style: dict[str, Any]) -> str:
    """The curves; empty where no point has a value."""
    if all(math.isnan(value) for one in series for value in one.y):
        return ""
    return curves(title, x, y, series, height=HEIGHT, **style)


def damage_chart(rows: list[dict[str, Any]], style: dict[str, Any]) -> str:
    """Damage at .7 over the rate."""
    title = "Damage at .7, median over tasks, by rate"
    return chart(title, "learning rate (1e-4)", "nats", by_arm(rows, "damage"), style)


def steps_chart(rows: list[dict[str, Any]], style: dict[str, Any]) -> str:
    """Steps to .7 over the rate."""
    title = "Steps to .7, median over tasks, by rate"
    return chart(title, "learning rate (1e-4)", "steps", by_arm(rows, "steps"), style)


def interaction_chart(rows: list[dict[str, Any]], style: dict[str, Any]) -> str:
    """H2c over the rate of acft, a curve for each control and rate of sgd."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        x, y = points.setdefault(f"{row['control']}, sgd {row['rate_sgd']:g}", ([], []))
        x.append(1e4 * row["rate_acft"])
        y.append(row["value"])
    series = [Series(name, x, y) for name, (x, y) in points.items()]
    return chart("H2c by rate", "rate of acft (1e-4)", "nats", series, style)

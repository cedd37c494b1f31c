"""The kinds of plots, the runs that each draws, and their points as a table."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsa_sandbox import registry
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.registry import nearest
from dsa_sandbox.report import charts, forgetting, indexer, pictures
from dsa_sandbox.report.loading import in_order, load
from dsa_sandbox.report.panels import Drawn
from dsa_sandbox.runs import home as store
from dsa_sandbox.runs.folder import Run

KINDS = registry.plots  # each a function (arms, style) -> Drawn
TABLE = ".csv"
SHORT = 12  # rows of the chart that ends a study


def check_plot(kind: str, save: Path | None) -> None:
    """UserError for an unknown kind of plot, or a file that cannot be written."""
    known = [*KINDS, *OF_BASES]
    if kind not in known:
        raise UserError(
            f"--kind {kind}: no such plot{nearest(kind, known)}  (there are: {', '.join(known)})"
        )
    if save is None:
        return
    pictures.check_file(save, TABLE, f"{TABLE} for a table of its points")


def chosen(kind: str, home: Path, names: list[str]) -> list[Run]:
    """The named runs, or by default those that a kind of plot draws, as a grid of arms."""
    if kind in OF_BASES:
        return indexer.chosen(home, names)
    runs = store.chosen_runs(home, names)
    return runs if names else store.in_grid(runs)


def draw(kind: str, runs: list[Run], *, width: int, colour: bool, unicode: bool) -> Drawn:
    """The chart of a kind for these runs."""
    style = {"width": width, "colour": colour, "unicode": unicode}
    return OF_BASES[kind](runs, style) if kind in OF_BASES else KINDS[kind](load(runs), style)


def end_of_study(runs: list[Run], style: dict[str, Any], *, everything: bool) -> str:
    """The chart above the tables of `run`: damage of single tasks, or forgetting in the stream.

    With --all the whole plots of both. Empty where there is neither, as with bounds alone.
    """
    arms = load(runs)
    measured = any(arm.single and forgetting.has_level(arm) for arm in arms)
    if everything:
        kinds = ["matched"] if measured else []
        kinds += ["forgetting", "front"] if in_order(arms) else []
        return "\n\n".join(KINDS[kind](arms, style).text for kind in kinds)
    if measured:
        return forgetting.draw_matched(arms, style, height=SHORT).text
    if not in_order(arms):
        return ""
    return charts.text_of(forgetting.pretraining_panel(arms, height=SHORT), **style)


OF_BASES: dict[str, Callable[[list[Run], dict[str, Any]], Drawn]] = {
    "indexer": indexer.draw_indexer
}


def save(path: Path, kind: str, drawn: Drawn) -> str:
    """Write the picture, or the points as a table, by the ending of the name; what was written."""
    if path.suffix.lower() == TABLE:
        save_csv(path, drawn.points)
        return f"points written to {path}"
    if not drawn.panels:
        raise UserError(f"--save {path}: --kind {kind} draws text alone; end the name in {TABLE}")
    pictures.save(path, drawn.panels)
    return f"picture written to {path}"


def save_csv(path: Path, points: list[dict[str, Any]]) -> None:
    """The points as a table with a header; UserError where the file cannot be written."""
    names: dict[str, None] = {}  # in the order of their first use
    for point in points:
        names |= dict.fromkeys(point)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(points)
    except OSError as error:
        raise UserError(f"--save {path}: cannot be written: {reason(error)}") from None

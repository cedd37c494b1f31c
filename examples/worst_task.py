"""A metric and a plot of one's own in one file: exact match on the task that is remembered worst.

`dsa-sandbox plot --include examples/worst_task.py --kind worst-task`

The mean over tasks, which `--kind forgetting` draws, hides a single task that is gone.
T tasks.
"""

from typing import Any

import numpy as np

from dsa_sandbox.registry import plots
from dsa_sandbox.report import charts
from dsa_sandbox.report.loading import Arm, having, or_none
from dsa_sandbox.report.panels import Drawn, Panel


def worst_exact_match(matrix: np.ndarray, row: int) -> float:
    """min over j <= row of R[row, j]: exact match on the worst task so far, a share.

    A metric is a function of what a run has stored. `matrix` is R [T + 1, T] with the base in row
    0, and NaN where a task was not measured, since a later task contradicts it.
    """
    seen = matrix[row, :row]
    measured = seen[~np.isnan(seen)]
    return float(measured.min()) if len(measured) else float("nan")


@plots.register("worst-task")
def draw_worst_task(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """The worst task's exact match after each task, a curve for each arm.

    A plot returns its panels, which the terminal and `--save FILE.svg` draw, and its points, which
    `--json` and `--save FILE.csv` write; `style` holds the width of the terminal and its colours.
    """
    series = []
    points = []
    for arm in having(arms, lambda arm: arm.done, "no arm has learned a task yet"):
        rows = [line["row"] for line in arm.lines if line["row"]]
        values = [worst_exact_match(arm.matrix, row) for row in rows]
        series.append(arm.series([float(row) for row in rows], values))
        for row, value in zip(rows, values):
            points.append({"arm": arm.name, "task": row, "worst_exact_match": or_none(value)})
    title = "Forgetting of the worst task: min over tasks seen of R[t, j]"
    panel = Panel("curves", title, "tasks learned", "exact match", series)
    return charts.drawn([panel], points, style)

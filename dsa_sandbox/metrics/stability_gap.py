"""Figures of the stability gap: tasks that are forgotten for a while, seen by dense evaluation.

De Lange, van de Ven & Tuytelaars, ICLR 2023, arXiv 2205.13452. A dense line holds
`task` (the task being learned), `at_step`, and `seen`, the exact share of tasks 0 to `task`.
"""

from collections.abc import Mapping

import numpy as np

from dsa_sandbox.metrics.figure import NAN, Figure
from dsa_sandbox.metrics.forgetting import Record, mean

FIGURES = {
    "min_acc": Figure(
        "min-ACC",
        "share",
        "mean over j < T of the least exact match of j after task j, over rows and dense steps",
    ),
    "wc_acc": Figure("WC-ACC", "share", "R[T,T] / T + (1 - 1 / T) min-ACC"),
}


def minimum_accuracy(
    matrix: np.ndarray, dense: list[Record], replaced: Mapping[int, int] | None = None
) -> float:
    """min-ACC: mean over tasks but the last of the least exact match at any time after its own row.

    An upper bound of the paper's value, which measures every step; NaN without dense steps.
    """
    num_tasks = matrix.shape[1]
    lines = [line for line in dense if line["task"] and line["at_step"]]
    if not lines:
        return NAN
    least = []
    for task in range(num_tasks - 1):
        end = (replaced or {}).get(task, num_tasks)  # the later task that contradicts this one
        values = [matrix[row, task] for row in range(task + 2, min(end, num_tasks) + 1)]
        values += [line["seen"][task] for line in lines if task < line["task"] < end]
        values = [value for value in values if not np.isnan(value)]
        if values:
            least.append(min(values))
    return mean(least)


def stability_figures(
    matrix: np.ndarray, dense: list[Record], replaced: Mapping[int, int] | None = None
) -> dict[str, float]:
    """The figures of FIGURES, from R [T + 1, T] and the dense lines of metrics.jsonl."""
    num_tasks = matrix.shape[1]
    least = minimum_accuracy(matrix, dense, replaced)
    last = float(matrix[num_tasks, num_tasks - 1])
    return {"min_acc": least, "wc_acc": last / num_tasks + (1 - 1 / num_tasks) * least}

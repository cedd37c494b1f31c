"""What is lost for a while: the stability gap, from evaluation step by step.

De Lange, van de Ven & Tuytelaars, ICLR 2023, arXiv 2205.13452. A dense line holds
`task` (being learned), `at_step`, and `seen`, the exact share of tasks 0 to `task`.
"""

from collections.abc import Mapping

import numpy as np

from dsa_sandbox.metrics.forgetting import NAN, Formula, Record, mean

FORMULAS = {
    "min_acc": Formula(
        "min-ACC",
        "mean over j < T of the least exact match of j after task j, over rows and dense steps",
        "higher",
    ),
    "wc_acc": Formula("WC-ACC", "R[T,T] / T + (1 - 1 / T) min-ACC", "higher"),
}


def minimum_accuracy(
    matrix: np.ndarray, dense: list[Record], replaced: Mapping[int, int] | None = None
) -> float:
    """min-ACC: mean over tasks but the last of the least exact match at any time after its own row.

    Only an upper bound of what the paper measures at every step: NaN where no step is dense.
    """
    num_tasks = matrix.shape[1]
    lines = [line for line in dense if line["task"] and line["at_step"]]
    if not lines:
        return NAN
    least = []
    for task in range(num_tasks - 1):
        end = (replaced or {}).get(task, num_tasks)  # the task that turns it around, if any
        values = [matrix[row, task] for row in range(task + 2, min(end, num_tasks) + 1)]
        values += [line["seen"][task] for line in lines if task < line["task"] < end]
        values = [value for value in values if not np.isnan(value)]
        if values:
            least.append(min(values))
    return mean(least)


def figures(
    matrix: np.ndarray, dense: list[Record], replaced: Mapping[int, int] | None = None
) -> dict[str, float]:
    """The figures of FORMULAS, from R [T + 1, T] and the dense lines of metrics.jsonl."""
    num_tasks = matrix.shape[1]
    least = minimum_accuracy(matrix, dense, replaced)
    last = float(matrix[num_tasks, num_tasks - 1])
    return {"min_acc": least, "wc_acc": last / num_tasks + (1 - 1 / num_tasks) * least}

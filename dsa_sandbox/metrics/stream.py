"""Figures of a stream of tasks: what held-out text and discrimination lose on the way.

D[t, j] is the discrimination of task j on its validation items after task t (discrimination.py),
NaN where it was not measured or a task lacks items of a side. Tasks are numbered from 0, so row
j + 1 is the own row of task j.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from dsa_sandbox.metrics.discrimination import Parts, parts_of_records
from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.metrics.forgetting import Record, mean, number, own_accuracy

LAGS = (1, 2, 3)  # tasks later; at longer lags discrimination meets its floor
UNEQUAL = 0.05  # difference of own rows beyond which two arms count as unequally learned
PARTS = ("discrimination", "near_in", "far_in", "out")  # of the validation items
WORDS = {
    "discrimination": "discrimination (the least of the mean p near-in, far-in and out)",
    "near_in": "mean p of items in the world, its name nearer than K tokens",
    "far_in": "mean p of items in the world, its name at least 2K tokens before",
    "out": "mean p of items outside the world",
    "transfer": "discrimination on transfer items (frames and worlds of no story)",
}


def part_figures() -> dict[str, Figure]:
    """Each part right after its task and after the last: own near-in, end near-in."""
    found = {}
    for key, words in WORDS.items():
        name = key.replace("_", "-")
        found[f"own_{key}"] = Figure(
            f"own {name}",
            "probability",
            f"mean over tasks of {words}, after task j",
            "task",
        )
        found[f"end_{key}"] = Figure(
            f"end {name}", "probability", f"mean over tasks of {words}, after T", "end"
        )
    return found


FIGURES = {
    "drift": Figure(
        "drift",
        "nats per token",
        "mean over the rows of the second half of the stream of held-out dNLL",
    ),
    "lost": Figure(
        "lost",
        "probability",
        "mean over tasks and lags 1, 2, 3 of D[j,j] - D[j+lag,j], D the discrimination",
    ),
    **part_figures(),
    "overshoot": Figure(
        "overshoot",
        "probability",
        "mean over learned tasks of discrimination on stop items - the level, where the task ended",
        "task",
    ),
}


def drift(lines: list[Record]) -> float:
    """Mean dNLL over the rows of the second half; of an odd number, the middle row counts too.

    `lines` are the lines of metrics.jsonl that end a task, row 0 first.
    """
    start = number(lines[0], "base_nll")
    num_tasks = int(lines[-1]["row"])
    late = [line for line in lines if line["row"] and line["row"] > num_tasks // 2]
    return mean(number(line, "base_nll") - start for line in late)


def parts_by_row(records: Iterable[Record], stage: str) -> dict[tuple[int, int], Parts]:
    """The parts of discrimination for each row and task, on `validation` or `transfer` items."""
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        if record["kind"] in (f"{stage}_in", f"{stage}_out"):
            groups.setdefault((record["row"], record["task"]), []).append(record)
    return {place: parts_of_records(group) for place, group in groups.items()}


def values_of(found: dict[tuple[int, int], Parts], part: str, num_tasks: int) -> np.ndarray:
    """A part as a matrix [T + 1, T] by row and task; NaN where it was not measured."""
    matrix = np.full((num_tasks + 1, num_tasks), np.nan)
    for place, parts in found.items():
        matrix[place] = parts.row()[part]
    return matrix


def discriminations(records: Iterable[Record], num_tasks: int) -> np.ndarray:
    """D [T + 1, T] on validation items."""
    return values_of(parts_by_row(records, "validation"), "discrimination", num_tasks)


def lost(matrix: np.ndarray) -> float:
    """Mean fall of D from a task's own row to 1, 2 and 3 tasks later; NaN for a single task."""
    num_tasks = matrix.shape[1]
    falls = []
    for task in range(num_tasks):
        for lag in LAGS:
            if task + 1 + lag <= num_tasks:
                falls.append(matrix[task + 1, task] - matrix[task + 1 + lag, task])
    return mean_known(falls)


def mean_known(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    return mean(value for value in values if not np.isnan(value))


def means_over_tasks(records: list[Record], row: int, num_tasks: int) -> dict[str, float]:
    """Mean over tasks of each part in a row, by its key in PARTS; `transfer` beside."""
    found = {key: matrix[row] for key, matrix in matrices_of(records, num_tasks).items()}
    return {key: mean_known(values) for key, values in found.items()}


def matrices_of(records: list[Record], num_tasks: int) -> dict[str, np.ndarray]:
    """Each of PARTS, and `transfer`, as a matrix [T + 1, T] by row and task."""
    validation = parts_by_row(records, "validation")
    found = {part: values_of(validation, part, num_tasks) for part in PARTS}
    transfer = parts_by_row(records, "transfer")
    return found | {"transfer": values_of(transfer, "discrimination", num_tasks)}


def stream_figures(
    records: list[Record], lines: list[dict[str, Any]], protocol: str = "sequential"
) -> dict[str, float]:
    """The figures of FIGURES, from the records and the lines that end a task."""
    num_tasks = int(lines[-1]["row"])
    matrices = matrices_of(records, num_tasks)
    values = {"drift": drift(lines), "lost": lost(matrices["discrimination"])}
    for part, matrix in matrices.items():
        values[f"own_{part}"] = mean_known(own_accuracy(matrix, protocol))
        values[f"end_{part}"] = mean_known(matrix[num_tasks])
    ended = [line for line in lines if line["row"] and line.get("learned") and "overshoot" in line]
    values["overshoot"] = mean_known(number(line, "overshoot") for line in ended)
    return defined({key: values.get(key, NAN) for key in FIGURES}, FIGURES, protocol)

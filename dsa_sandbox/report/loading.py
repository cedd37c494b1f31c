"""What plots need of fine-tuning runs, finished or not."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import arm as stored
from dsa_sandbox.metrics import forgetting
from dsa_sandbox.report.charts import Series
from dsa_sandbox.report.table import told_apart, told_diverged
from dsa_sandbox.runs.folder import Run


class Arm(NamedTuple):
    """What a plot needs of a run."""

    name: str
    num_tasks: int  # of the stream
    lines: list[dict[str, Any]]  # of metrics.jsonl that end a task, from row 0
    records: list[dict[str, Any]]  # without those of tasks that are overwritten by then
    course: str  # sequence, together, apart, nothing
    dense: list[dict[str, Any]]  # lines of metrics.jsonl of dense evaluation
    replaced: dict[int, int]  # tasks that a later one undoes, with its number
    diverged: int | None = None  # tasks learned when it had diverged, if it has

    @property
    def matrix(self) -> np.ndarray:
        """R [T + 1, T], as far as it is measured."""
        return forgetting.accuracy_matrix(self.records, self.num_tasks)

    @property
    def sound(self) -> list[dict[str, Any]]:
        """The lines before it diverged: what has no bound later would leave others no room."""
        return [line for line in self.lines if self.diverged is None or line["row"] < self.diverged]

    @property
    def done(self) -> int:
        """Tasks that are learned."""
        return int(self.lines[-1]["row"])


def load(runs: list[Run]) -> list[Arm]:
    """The arms, each with a name of its own; UserError for a run that is none."""
    problems = []
    for run in runs:
        command = run.manifest.get("command")
        if command != "finetune":
            hint = "; --kind indexer draws a base" if command == "pretrain" else ""
            problems.append(f"{run.name}: a {command} run; a finetune run is needed{hint}")
    if problems:
        raise UserError(*problems)
    short = [
        f"{run.manifest['arch']} {run.manifest['strategy']}"
        + (" overwriting" if run.manifest["overwriting"] else "")
        for run in runs
    ]
    names = told_apart(short, [run.name for run in runs], [run.manifest["seed"] for run in runs])
    arms = []
    for name, run in zip(names, runs):
        rows = run.rows("metrics.jsonl")
        lines = forgetting.ends_of(rows)
        if lines:
            done = lines[-1]["row"]
            records = [r for r in run.rows("records.jsonl") if r["row"] <= done]
            replaced = forgetting.overwritten(stored.rows_of_tasks(run))
            records = forgetting.current(records, replaced)
            course = run.manifest.get("course", "sequence")
            dense = [row for row in rows if "at_step" in row]
            count = run.manifest["tasks"]["count"]
            diverged = forgetting.diverged_after(lines)
            remarks = [f"{done} of {count} tasks"] if done < count else []
            remarks += [] if diverged is None else [told_diverged(diverged)]
            name = f"{name} ({', '.join(remarks)})" if remarks else name
            arms.append(Arm(name, count, lines, records, course, dense, replaced, diverged))
    if not arms:
        raise UserError("nothing to draw: no task of these runs is finished")
    return arms


def in_order(arms: list[Arm]) -> list[Arm]:
    """Those whose rows follow each other; in an arm that learns tasks apart, none does."""
    return [arm for arm in arms if arm.course != "apart"]


def having(arms: list[Arm], holds: Callable[[Arm], Any], what: str) -> list[Arm]:
    """Those that hold something of a kind; UserError where none does, `what` says what it takes."""
    found = [arm for arm in in_order(arms) if holds(arm)]
    if not found:
        raise UserError(f"nothing to draw: {what}")
    return found


def by_row(arm: Arm, figure: Callable[[dict[str, Any]], float], *, bounded: bool = True) -> Series:
    """A figure of each row that has it, over tasks learned; without bounds, of sound rows alone."""
    lines = arm.lines if bounded else arm.sound
    values = [(float(line["row"]), figure(line)) for line in lines]
    kept = [(row, value) for row, value in values if not math.isnan(value)]
    return Series(arm.name, [row for row, _ in kept], [value for _, value in kept])


def or_none(value: float) -> float | None:
    """The value, null where it is not a number: for points."""
    return None if math.isnan(value) else float(value)

"""Fine-tuning runs as plots read them, finished or not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import arm as stored
from dsa_sandbox.metrics import forgetting, single, stream
from dsa_sandbox.report.looks import Look, looks_of
from dsa_sandbox.report.names import arm_name, distinct, diverged_remark, with_remarks
from dsa_sandbox.report.panels import Series
from dsa_sandbox.runs.folder import Run


class Arm(NamedTuple):
    """The stored measurements of a run."""

    name: str
    look: Look
    run: Run
    num_tasks: int  # of the stream
    lines: list[dict[str, Any]]  # of metrics.jsonl that end a task, from row 0
    records: list[dict[str, Any]]  # without those of overwritten tasks
    protocol: str  # sequential, joint, none; independent where tasks are learned apart
    dense: list[dict[str, Any]]  # lines of metrics.jsonl of dense evaluation
    replaced: dict[int, int]  # number of the later task by number of the task it contradicts
    diverged: int | None = None  # number of tasks after which the arm had diverged
    single: dict[str, Any] | None = None  # figures of single tasks; None for a stream

    def series(self, x: list[float], y: list[float]) -> Series:
        """A row of points under the arm's name, with its look."""
        return Series(self.name, x, y, self.look)

    @property
    def matrix(self) -> np.ndarray:
        """R [T + 1, T], NaN where it was not measured."""
        return forgetting.accuracy_matrix(self.records, self.num_tasks)

    @property
    def discriminations(self) -> np.ndarray:
        """D [T + 1, T] on validation items, NaN where it was not measured."""
        return stream.discriminations(self.records, self.num_tasks)

    @property
    def sound(self) -> list[dict[str, Any]]:
        """The lines before the arm diverged: later values would stretch the axes for all arms."""
        return [line for line in self.lines if self.diverged is None or line["row"] < self.diverged]

    @property
    def done(self) -> int:
        """Number of tasks learned so far."""
        return int(self.lines[-1]["row"])


def load(runs: list[Run]) -> list[Arm]:
    """The arms, each with a name of its own.

    UserError for a run of another command, and for arms of an older version.
    """
    problems = []
    for run in runs:
        command = run.manifest.get("command")
        if command != "finetune":
            hint = "; --kind indexer draws a base" if command == "pretrain" else ""
            problems.append(f"{run.name}: a {command} run; a finetune run is needed{hint}")
    if problems:
        raise UserError(*problems)
    stored.check_schema(runs)
    names: dict[Path, str] = {}
    looks: dict[Path, Look] = {}
    for experiment in ("stream", "single"):  # no plot draws both
        these = [run for run in runs if stored.experiment_of(run.manifest) == experiment]
        found = distinct(
            [arm_name(run.manifest) for run in these],
            [run.name for run in these],
            [run.manifest["seed"] for run in these],
        )
        names |= {run.path: name for run, name in zip(these, found)}
        pairs = [(run.manifest["arch"], run.manifest["strategy"]) for run in these]
        looks |= {run.path: look for run, look in zip(these, looks_of(pairs))}
    arms = []
    for run in runs:
        arm = load_arm(names[run.path], looks[run.path], run)
        if arm is not None:
            arms.append(arm)
    if not arms:
        raise UserError("nothing to draw: no task of these runs is finished")
    return arms


def load_arm(name: str, look: Look, run: Run) -> Arm | None:
    """The arm under a name and look, with remarks on its state; None before its first row."""
    rows = run.rows("metrics.jsonl")
    lines = forgetting.ends_of(rows)
    if not lines:
        return None
    done = lines[-1]["row"]
    replaced = forgetting.overwritten(stored.rows_of_tasks(run))
    records = [record for record in run.rows("records.jsonl") if record["row"] <= done]
    num_tasks = run.manifest["tasks"]["count"]
    protocol = stored.measured_as(run.manifest)
    single_tasks = None
    if stored.experiment_of(run.manifest) == "single":
        single_tasks = single.single_figures(rows, done, stored.conditions(run)["level"])
    diverged = forgetting.diverged_after(lines) if protocol != "independent" else None
    remarks = []
    if done < num_tasks:
        remarks.append(f"{done} of {num_tasks} tasks")
    if diverged is not None:
        remarks.append(diverged_remark(diverged))
    return Arm(
        name=with_remarks(name, remarks),
        look=look,
        run=run,
        num_tasks=num_tasks,
        lines=lines,
        records=forgetting.current(records, replaced),
        protocol=protocol,
        dense=[row for row in rows if "at_step" in row],
        replaced=replaced,
        diverged=diverged,
        single=single_tasks,
    )


def in_order(arms: list[Arm]) -> list[Arm]:
    """The arms that learn one task after another, without those that learn each from the base."""
    return [arm for arm in arms if arm.protocol != "independent"]


def having(arms: list[Arm], holds: Callable[[Arm], Any], missing: str) -> list[Arm]:
    """The arms that hold the data of a plot; UserError with `missing` where no arm does."""
    found = [arm for arm in in_order(arms) if holds(arm)]
    if not found:
        raise UserError(f"nothing to draw: {missing}")
    return found


def by_row(arm: Arm, figure: Callable[[dict[str, Any]], float], *, bounded: bool = True) -> Series:
    """A figure over tasks learned, without rows that lack it.

    An unbounded figure (`bounded=False`) ends where the arm diverged.
    """
    rows = []
    values = []
    for line in arm.lines if bounded else arm.sound:
        value = figure(line)
        if not math.isnan(value):
            rows.append(float(line["row"]))
            values.append(value)
    return arm.series(rows, values)


def or_none(value: float) -> float | None:
    """The value, None for NaN: points become JSON."""
    return None if math.isnan(value) else float(value)

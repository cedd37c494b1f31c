"""Which points a plot shows: curves over tasks, retention matrix, learning against forgetting."""

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox import store
from dsa_sandbox.errors import UserError
from dsa_sandbox.evaluation import metrics
from dsa_sandbox.registry import nearest
from dsa_sandbox.report import charts, indexer
from dsa_sandbox.report.charts import Drawn, Series
from dsa_sandbox.store import Run


class Arm(NamedTuple):
    """What a plot needs of a run."""

    name: str
    num_tasks: int  # of the stream
    lines: list[dict[str, Any]]  # of metrics.jsonl that end a task, from row 0
    records: list[dict[str, Any]]


def check(kind: str, save: Path | None) -> None:
    """UserError for an unknown kind of plot or a file we cannot write."""
    known = [*KINDS, *OF_BASES]
    if kind not in known:
        raise UserError(
            f"--kind {kind}: no such plot{nearest(kind, known)}  (there are: {', '.join(known)})"
        )
    if save is not None and save.suffix != ".csv":
        raise UserError(f"--save {save}: write to a .csv file")
    if save is not None and not save.parent.is_dir():
        raise UserError(f"--save {save}: the folder {save.parent} does not exist")


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
    seeds = [f" s{run.manifest['seed']}" for run in runs]
    if len({run.manifest["seed"] for run in runs}) > 1:
        short = [name + seed for name, seed in zip(short, seeds)]
    times = Counter(short)
    arms = []
    for name, run in zip(short, runs):
        if times[name] > 1:
            name = f"{name} {run.manifest['identity'][:4]}"
        lines = [row for row in run.rows("metrics.jsonl") if "row" in row]
        if lines:
            done = lines[-1]["row"]
            records = [r for r in run.rows("records.jsonl") if r["row"] <= done]
            arms.append(Arm(name, run.manifest["tasks"]["count"], lines, records))
    if not arms:
        raise UserError("nothing to draw: no task of these runs is finished")
    return arms


def chosen(kind: str, home: Path, names: list[str]) -> list[Run]:
    """The runs that a kind of plot draws: those named, or those that it takes by itself."""
    return indexer.chosen(home, names) if kind in OF_BASES else store.chosen_runs(home, names)


def draw(kind: str, runs: list[Run], *, width: int, colour: bool, unicode: bool) -> Drawn:
    """The chart of a kind for these runs."""
    style = {"width": width, "colour": colour, "unicode": unicode}
    return OF_BASES[kind](runs, style) if kind in OF_BASES else KINDS[kind](load(runs), style)


def draw_forgetting(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Base perplexity ratio, and exact match over the tasks seen, after each task."""
    ratio, exact, points = [], [], []
    for arm in arms:
        first = arm.lines[0]["base_nll"]
        rows = [line["row"] for line in arm.lines]
        ratios = [math.exp(line["base_nll"] - first) for line in arm.lines]
        matrix = metrics.accuracy_matrix(arm.records, arm.num_tasks)
        seen = [float(np.nanmean(matrix[row, :row])) if row else math.nan for row in rows]
        ratio.append(Series(arm.name, [float(row) for row in rows], ratios))
        exact.append(Series(arm.name, [float(row) for row in rows], seen))
        for row, one, other in zip(rows, ratios, seen):
            value = None if math.isnan(other) else other
            points.append({"arm": arm.name, "task": row, "ppl_ratio": one, "exact_match": value})
    texts = [
        charts.curves(
            "Forgetting of pre-training: exp(NLL_base(t) - NLL_base(0))",
            "tasks learned",
            "ppl ratio",
            ratio,
            **style,
        ),
        charts.curves(
            "Forgetting of tasks: mean exact match over the tasks seen, R[t, 1..t]",
            "tasks learned",
            "exact match",
            exact,
            **style,
        ),
    ]
    return Drawn("\n\n".join(texts), points)


def draw_retention(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """R[t, j]: exact match of task j after task t, one matrix per arm."""
    texts, points = [], []
    for arm in arms:
        matrix = metrics.accuracy_matrix(arm.records, arm.num_tasks)[1:]
        title = f"{arm.name}: R[t, j], exact match of task j after task t"
        texts.append(charts.heat_map(title, "task j", "after task t", matrix, **style))
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = float(matrix[row, column])
            after, task = int(row) + 1, int(column) + 1
            points.append({"arm": arm.name, "after": after, "task": task, "exact_match": value})
    return Drawn("\n\n".join(texts), points)


def draw_front(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Learning (exact match right after each task) against forgetting (Y), a point an arm."""
    series, points = [], []
    for arm in arms:
        last = arm.lines[-1]
        matrix = metrics.accuracy_matrix(arm.records, arm.num_tasks)
        learned = metrics.mean(matrix[j + 1, j] for j in range(last["row"]))
        y = last["base_nll"] - arm.lines[0]["base_nll"]
        series.append(Series(arm.name, [learned], [y]))
        value = None if math.isnan(learned) else learned
        points.append({"arm": arm.name, "learned": value, "Y": y})
    title = "Learning against forgetting (best: low and right)"
    return Drawn(charts.scatter(title, "mean R[j, j]", "Y, nats", series, **style), points)


KINDS: dict[str, Callable[[list[Arm], dict[str, Any]], Drawn]] = {
    "forgetting": draw_forgetting,
    "retention": draw_retention,
    "front": draw_front,
}
OF_BASES: dict[str, Callable[[list[Run], dict[str, Any]], Drawn]] = {"indexer": indexer.draw}


def save_csv(path: Path, points: list[dict[str, Any]]) -> None:
    """The points as a table with a header; UserError where the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(points[0]))
            writer.writeheader()
            writer.writerows(points)
    except OSError as error:
        raise UserError(f"--save {path}: cannot be written: {error.strerror}") from None

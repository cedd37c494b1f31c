"""Every figure of an arm, as pure functions of its stored records; no torch.

R[t, j] is the exact-match share of the clozes of task j after task t (row 0: the base), NaN where
not measured; tasks are numbered from 0, so row j + 1 is the row after task j.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]


class Formula(NamedTuple):
    """What a figure is called in tables, how it is computed, and whether more of it is better."""

    title: str
    text: str
    better: str  # higher, lower, or none


FORMULAS = {
    "learned": Formula("learned", "tasks whose stop rule was met before the cap / tasks", "higher"),
    "Y": Formula("Y", "NLL_base(T) - NLL_base(0), nats per token of held-out stories", "lower"),
    "Y2": Formula(
        "Y2", "mean over tasks of m[j,j] - m[T,j], m = log P(new) - log P(true) on clozes", "lower"
    ),
    "kl": Formula(
        "KL", "KL(base || now) on held-out stories, nats per token, after task T", "lower"
    ),
    "efficacy": Formula("efficacy", "clozes of j with P(new) > every foil, after task j", "higher"),
    "generality": Formula(
        "generality", "items in unseen frames with P(new) > every foil, after task j", "higher"
    ),
    "retention": Formula("retention", "mean R[T,j] over tasks: exact match at the end", "higher"),
    "kept": Formula("kept", "clozes exact after task j that are exact after task T", "higher"),
    "keep": Formula("real world", "items outside with P(true) > every foil, after T", "higher"),
    "bleed": Formula(
        "bleed", "mean P(new) in worlds that no training story names, after T", "lower"
    ),
    "specificity": Formula(
        "specificity", "neighbours with P(true) > every foil, after T", "higher"
    ),
    "forgetting": Formula("forgetting", "mean over j < T of R[j,j] - R[T,j]", "lower"),
    "forgetting_max": Formula(
        "forgetting (max)", "mean over j < T of max over l < T of R[l,j], minus R[T,j]", "lower"
    ),
    "bwt": Formula("BWT", "mean over j < T of R[T,j] - R[j,j]", "higher"),
    "aaa": Formula("AAA", "mean over t of the mean of R[t,j] over j <= t", "higher"),
    "ppl_ratio": Formula("ppl ratio", "exp(Y)", "lower"),
    "em_ratio": Formula("EM ratio", "mean R[T,j] / mean R[j,j]; shown, never tested", "higher"),
    "stop_margin": Formula(
        "margin",
        "mean over tasks of the margin over the best rival on clozes, after task j",
        "none",
    ),
    "steps": Formula("steps", "mean optimiser steps of a task", "none"),
}


def select(
    records: Iterable[Record], kind: str, *, row: int | None = None, task: int | None = None
) -> list[Record]:
    """Records of one kind, of one row and task where given."""
    return [
        r
        for r in records
        if r["kind"] == kind
        and (row is None or r["row"] == row)
        and (task is None or r["task"] == task)
    ]


def mean(values: Iterable[float]) -> float:
    """Mean, NaN of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")


def accuracy_matrix(records: list[Record], num_tasks: int) -> np.ndarray:
    """R [T + 1, T]: exact match (greedy) of the clozes of each task after each row."""
    hits: dict[tuple[int, int], list[bool]] = {}
    for record in select(records, "cloze"):
        hits.setdefault((record["row"], record["task"]), []).append(record["gen_em"])
    matrix = np.full((num_tasks + 1, num_tasks), np.nan)
    for (row, task), values in hits.items():
        matrix[row, task] = np.mean(values)
    return matrix


def forgetting(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of R[j,j] - R[T,j] (first minus last)."""
    last = matrix.shape[1]
    return mean(matrix[j + 1, j] - matrix[last, j] for j in range(last - 1))


def forgetting_chaudhry(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of max over l < T of R[l,j], minus R[T,j].

    Chaudhry et al. 2018, arXiv 1801.10112, eq. 3, over rows after task j; may be negative.
    """
    last = matrix.shape[1]
    return mean(np.nanmax(matrix[j + 1 : last, j]) - matrix[last, j] for j in range(last - 1))


def forgetting_max0(matrix: np.ndarray) -> float:
    """The same with row T inside the maximum: never negative."""
    last = matrix.shape[1]
    return mean(np.nanmax(matrix[j + 1 : last + 1, j]) - matrix[last, j] for j in range(last - 1))


def backward_transfer(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of R[T,j] - R[j,j] (Lopez-Paz & Ranzato 2017, eq. 3)."""
    return -forgetting(matrix)


def average_anytime_accuracy(matrix: np.ndarray) -> float:
    """Mean over rows t = 1..T of the mean of R[t,j] over the tasks seen."""
    last = matrix.shape[1]
    return mean(np.nanmean(matrix[t, :t]) for t in range(1, last + 1))


def learned_margin(record: Record) -> float:
    """log P(new) - log P(true) of a cloze record, nats."""
    return record["answer"] - record["contra"]


def margin_fall(records: list[Record], num_tasks: int) -> float:
    """Y2: mean over tasks of the fall of log P(new) - log P(true) from row j to row T."""
    falls = []
    for task in range(num_tasks):
        then, now = (
            mean(learned_margin(r) for r in select(records, "cloze", row=row, task=task))
            for row in (task + 1, num_tasks)
        )
        falls.append(then - now)
    return mean(falls)


def after_own_task(records: list[Record], kind: str) -> list[Record]:
    """Records of each task in the row right after it."""
    return [r for r in select(records, kind) if r["row"] == r["task"] + 1]


def kept_share(records: list[Record], num_tasks: int) -> float:
    """Of the clozes exact after their own task, the share exact at the end."""
    then = {(r["task"], r["item"]) for r in after_own_task(records, "cloze") if r["gen_em"]}
    end = select(records, "cloze", row=num_tasks)
    return mean(r["gen_em"] for r in end if (r["task"], r["item"]) in then)


def item_margin(record: Record) -> float:
    """Answer minus best rival, nats."""
    return record["answer"] - record["rival"]


def right(records: Iterable[Record]) -> float:
    """Share of records whose answer beats every foil; a tie is a failure."""
    return mean(item_margin(r) > 0 for r in records)


def summary(records: list[Record], tasks: list[Record]) -> dict[str, float]:
    """All figures of FORMULAS of one arm.

    `tasks` are the lines of metrics.jsonl that end a task (and row 0), each with `row`, `base_nll`,
    and from row 1 `steps` and `learned`; the last also holds `kl`.
    """
    num_tasks = max(line["row"] for line in tasks)
    lines = {line["row"]: line for line in tasks}
    matrix = accuracy_matrix(records, num_tasks)
    own = [matrix[j + 1, j] for j in range(num_tasks)]
    end = [matrix[num_tasks, j] for j in range(num_tasks)]
    y = lines[num_tasks]["base_nll"] - lines[0]["base_nll"]
    bleed = select(records, "bleed", row=num_tasks)
    return {
        "learned": mean(lines[row]["learned"] for row in range(1, num_tasks + 1)),
        "Y": y,
        "Y2": margin_fall(records, num_tasks),
        "kl": lines[num_tasks].get("kl", float("nan")),
        "efficacy": right(after_own_task(records, "cloze")),
        "generality": right(after_own_task(records, "paraphrase")),
        "retention": mean(end),
        "kept": kept_share(records, num_tasks),
        "keep": right(select(records, "outside", row=num_tasks)),
        "bleed": mean(float(np.exp(r["contra"])) for r in bleed),
        "specificity": right(select(records, "neighbour", row=num_tasks)),
        "forgetting": forgetting(matrix),
        "forgetting_max": forgetting_chaudhry(matrix),
        "bwt": backward_transfer(matrix),
        "aaa": average_anytime_accuracy(matrix),
        "ppl_ratio": float(np.exp(y)),
        "em_ratio": mean(end) / mean(own) if mean(own) else float("nan"),
        "stop_margin": mean(item_margin(r) for r in after_own_task(records, "cloze")),
        "steps": mean(lines[row]["steps"] for row in range(1, num_tasks + 1)),
    }


class Matching(NamedTuple):
    """Whether two arms are at equal learning, and where they are not."""

    equal: bool
    reasons: list[str]


def equal_learning(
    a: dict[str, float], b: dict[str, float], names: tuple[str, str] = ("first", "second")
) -> Matching:
    """Both learn >= 90 % of the tasks, stop within 0.5 nats, generality and bleed within 0.1.

    A NaN counts as a difference.
    """
    reasons = []
    for name, arm in zip(names, (a, b)):
        if not arm["learned"] >= 0.9:
            reasons.append(f"{name} learned {arm['learned']:.0%} of its tasks")
    for key, limit in (("stop_margin", 0.5), ("generality", 0.1), ("bleed", 0.1)):
        difference = abs(a[key] - b[key])
        if not difference <= limit:
            title = FORMULAS[key].title
            reasons.append(f"{title} differs by {difference:.2f} (limit {limit})")
    return Matching(not reasons, reasons)


def world_probabilities(records: list[Record]) -> dict[str, float]:
    """Mean P(new) right after each task: in its world, in other worlds, without one."""
    outside = after_own_task(records, "outside")
    return {
        "world": mean(float(np.exp(r["answer"])) for r in after_own_task(records, "cloze")),
        "other": mean(float(np.exp(r["contra"])) for r in outside if r["distance"] is not None),
        "none": mean(float(np.exp(r["contra"])) for r in outside if r["distance"] is None),
    }

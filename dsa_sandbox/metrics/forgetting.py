"""Every figure of an arm, as pure functions of its stored records; no torch.

R[t, j] is the exact-match share of the clozes of task j after task t (row 0: the base), NaN where
not measured; tasks are numbered from 0, so row j + 1 is the row after task j. What tasks leave
behind stands here; how fast they are learned, in learning.py and gaps.py; what becomes of single
items, in items.py; of the network, in drift.py. Each has its FORMULAS.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

Record = dict[str, Any]
NAN = float("nan")
SCORES = ("answer", "rival", "contra")  # of a record, log-probabilities in nats
DIVERGED = 999.0  # times the base's perplexity: worse than any guess by an even draw


class Formula(NamedTuple):
    """What a figure is called in tables, how it is computed, and whether more of it is better.

    `needs` says of which courses it speaks: `sequence`, of tasks learned one after another; `end`,
    of any network that has met all tasks; `task`, of tasks right after they were learned.
    """

    title: str
    text: str
    better: str  # higher, lower, or none
    needs: Literal["sequence", "end", "task"] = "sequence"


FORMULAS = {
    "learned": Formula(
        "learned", "tasks whose stop rule was met before the cap / tasks", "higher", "task"
    ),
    "Y": Formula(
        "Y", "NLL_base(T) - NLL_base(0), nats per token of held-out stories", "lower", "end"
    ),
    "Y2": Formula(
        "Y2", "mean over tasks of m[j,j] - m[T,j], m = log P(new) - log P(true) on clozes", "lower"
    ),
    "kl": Formula(
        "KL", "KL(base || now) on held-out stories, nats per token, after task T", "lower", "end"
    ),
    "efficacy": Formula(
        "efficacy", "clozes of j with P(new) > every foil, after task j", "higher", "task"
    ),
    "generality": Formula(
        "generality",
        "items in unseen frames with P(new) > every foil, after task j",
        "higher",
        "task",
    ),
    "retention": Formula(
        "retention", "mean R[T,j] over tasks: exact match at the end", "higher", "end"
    ),
    "kept": Formula("kept", "clozes exact after task j that are exact after task T", "higher"),
    "keep": Formula(
        "real world", "items outside with P(true) > every foil, after T", "higher", "end"
    ),
    "bleed": Formula(
        "bleed", "mean P(new) in worlds that no training story names, after T", "lower", "end"
    ),
    "own_bleed": Formula(
        "bleed (own)",
        "mean P(new) in worlds that no training story names, after task j",
        "lower",
        "task",
    ),
    "specificity": Formula(
        "specificity", "neighbours with P(true) > every foil, after T", "higher", "end"
    ),
    "forgetting": Formula("forgetting", "mean over j < T of R[j,j] - R[T,j]", "lower"),
    "forgetting_max": Formula(
        "forgetting (max)", "mean over j < T of max over l < T of R[l,j], minus R[T,j]", "lower"
    ),
    "forgetting_max0": Formula(
        "forgetting (max0)", "mean over j < T of max over l <= T of R[l,j], minus R[T,j]", "lower"
    ),
    "bwt": Formula("BWT", "mean over j < T of R[T,j] - R[j,j]", "higher"),
    "aaa": Formula("AAA", "mean over t of the mean of R[t,j] over j <= t", "higher"),
    "ppl_ratio": Formula("ppl ratio", "exp(Y)", "lower", "end"),
    "em_ratio": Formula("EM ratio", "mean R[T,j] / mean R[j,j]; shown, never tested", "higher"),
    "stop_margin": Formula(
        "margin",
        "mean over tasks of the margin over the best rival on clozes, after task j",
        "none",
        "task",
    ),
    "steps": Formula("steps", "mean optimiser steps of a task", "none", "task"),
}
NEEDS = {"together": ("end", "task"), "apart": ("task",)}  # other courses have all figures


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
    """Mean, NaN of nothing; infinite values have one without a warning."""
    listed = list(values)
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.mean(listed)) if listed else float("nan")


def exp(nats: float) -> float:
    """e to that power; infinite where no float is large enough (above 709 nats)."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


def perplexity_ratio(difference: float) -> float:
    """How many times as high perplexity is where NLL is so much higher, nats; may be infinite."""
    return exp(difference)


def diverged_after(lines: Iterable[Mapping[str, Any]]) -> int | None:
    """Tasks learned when held-out perplexity was first more than DIVERGED times the base's, or no
    number at all; None where it never was. `lines` are those that end a task, row 0 first.
    """
    first, *rest = lines
    start = number(first, "base_nll")
    for line in rest:
        rise = number(line, "base_nll") - start
        if not np.isfinite(rise) or perplexity_ratio(rise) > DIVERGED:
            return int(line["row"])
    return None


def ends_of(rows: Iterable[Record]) -> list[Record]:
    """Of the rows of metrics.jsonl those that end a task, with a NaN for a loss that was none."""
    return [{**row, "base_nll": number(row, "base_nll")} for row in rows if "row" in row]


def meant(
    values: Mapping[str, float], formulas: Mapping[str, Formula], course: str
) -> dict[str, float]:
    """The values, NaN where a figure says nothing of tasks learned on this course.

    `together`: all at once (rows 0 and T); `apart`: each from the base (row j + 1: task j alone).
    """
    needs = NEEDS.get(course)
    return {
        key: value if needs is None or formulas[key].needs in needs else NAN
        for key, value in values.items()
    }


def number(line: Mapping[str, Any], key: str) -> float:
    """A figure of a stored line, NaN where it was not measured or had no value."""
    value = line.get(key)
    return NAN if value is None else float(value)


def overwritten(rows: list[Record]) -> dict[int, int]:
    """Of tasks whose fact a later task turned around: number by number of that later task.

    `rows` are those of tasks.jsonl; `undoes` of a row names the earlier task.
    """
    numbers = {row["task"]: number for number, row in enumerate(rows)}
    return {numbers[row["undoes"]]: k for k, row in enumerate(rows) if row.get("undoes")}


def current(records: list[Record], replaced: Mapping[int, int]) -> list[Record]:
    """Records without the clozes and paraphrases of tasks that are overwritten by then.

    What a diverged network answers may have no number: null in the file, NaN here.
    """
    return [
        {**r, **{key: number(r, key) for key in SCORES}}
        for r in records
        if r["kind"] not in ("cloze", "paraphrase") or r["row"] <= replaced.get(r["task"], r["row"])
    ]


def accuracy_matrix(records: list[Record], num_tasks: int) -> np.ndarray:
    """R [T + 1, T]: exact match (greedy) of the clozes of each task after each row."""
    hits: dict[tuple[int, int], list[bool]] = {}
    for record in select(records, "cloze"):
        hits.setdefault((record["row"], record["task"]), []).append(record["gen_em"])
    matrix = np.full((num_tasks + 1, num_tasks), np.nan)
    for (row, task), values in hits.items():
        matrix[row, task] = np.mean(values)
    return matrix


def judged(matrix: np.ndarray) -> list[int]:
    """Tasks but the last that were measured both right after they were learned and at the end."""
    last = matrix.shape[1]
    return [j for j in range(last - 1) if not np.isnan(matrix[[j + 1, last], j]).any()]


def forgetting(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of R[j,j] - R[T,j] (first minus last)."""
    last = matrix.shape[1]
    return mean(matrix[j + 1, j] - matrix[last, j] for j in judged(matrix))


def forgetting_chaudhry(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of max over l < T of R[l,j], minus R[T,j].

    Chaudhry et al. 2018, arXiv 1801.10112, eq. 3, over rows after task j; may be negative.
    """
    last = matrix.shape[1]
    return mean(np.nanmax(matrix[j + 1 : last, j]) - matrix[last, j] for j in judged(matrix))


def forgetting_max0(matrix: np.ndarray) -> float:
    """The same with row T inside the maximum: never negative."""
    last = matrix.shape[1]
    return mean(np.nanmax(matrix[j + 1 : last + 1, j]) - matrix[last, j] for j in judged(matrix))


def backward_transfer(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of R[T,j] - R[j,j] (Lopez-Paz & Ranzato 2017, eq. 3)."""
    return 0.0 - forgetting(matrix)


def average_anytime_accuracy(matrix: np.ndarray) -> float:
    """Mean over rows t = 1..T of the mean of R[t,j] over the tasks seen; rows without any aside."""
    seen = [matrix[t, :t] for t in range(1, len(matrix))]
    return mean(np.nanmean(row) for row in seen if not np.isnan(row).all())


def retention_by_lag(matrix: np.ndarray) -> list[float]:
    """Mean over j of R[t,j] with t - j tasks learned since task j, for 0, 1, ... T - 1 of them."""
    after = matrix[1:]
    lags = (np.diagonal(after, -lag) for lag in range(len(after)))
    return [mean(row[~np.isnan(row)]) for row in lags]


def learned_margin(record: Record) -> float:
    """log P(new) - log P(true) of a cloze record, nats."""
    return record["answer"] - record["contra"]


def contra_probabilities(records: Iterable[Record]) -> list[float]:
    """P(object that stands against the answer), of records whose item asks of it."""
    return [exp(r["contra"]) for r in records if r["contra"] is not None]


def margin_fall(records: list[Record], num_tasks: int) -> float:
    """Y2: mean over tasks of the fall of log P(new) - log P(true) from row j to row T."""
    falls = []
    for task in range(num_tasks):
        then, now = (
            mean(
                learned_margin(r)
                for r in select(records, "cloze", row=row, task=task)
                if r["contra"] is not None
            )
            for row in (task + 1, num_tasks)
        )
        falls.append(then - now)
    return mean(fall for fall in falls if not np.isnan(fall))


def after_own_task(records: list[Record], kind: str, course: str = "sequence") -> list[Record]:
    """Records of each task in the row right after it was learned."""
    together = course == "together"
    return [
        r
        for r in select(records, kind)
        if (r["row"] > 0 if together else r["row"] == r["task"] + 1)
    ]


def own_accuracy(matrix: np.ndarray, course: str = "sequence") -> np.ndarray:
    """R[j,j] of each task [T]: exact match in the row right after it was learned."""
    return matrix[-1] if course == "together" else np.diagonal(matrix[1:])


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


def summary(
    records: list[Record], tasks: list[Record], course: str = "sequence"
) -> dict[str, float]:
    """All figures of FORMULAS of one arm, NaN where one has no meaning on its course.

    `tasks` are the lines of metrics.jsonl that end a task (and row 0), each with `row`, `base_nll`,
    and from row 1 `steps` and `learned`; the last also holds `kl`.
    """
    num_tasks = max(line["row"] for line in tasks)
    lines = {line["row"]: line for line in tasks}
    ends = [line for line in tasks if line["row"]]
    matrix = accuracy_matrix(records, num_tasks)
    own, end = own_accuracy(matrix, course), matrix[num_tasks]
    still = ~np.isnan(end)  # not overwritten since
    y = lines[num_tasks]["base_nll"] - lines[0]["base_nll"]
    bleed = select(records, "bleed", row=num_tasks)
    values = {
        "learned": mean(line["learned"] for line in ends),
        "Y": y,
        "Y2": margin_fall(records, num_tasks),
        "kl": number(lines[num_tasks], "kl"),
        "efficacy": right(after_own_task(records, "cloze", course)),
        "generality": right(after_own_task(records, "paraphrase", course)),
        "retention": mean(end[still]),
        "kept": kept_share(records, num_tasks),
        "keep": right(select(records, "outside", row=num_tasks)),
        "bleed": mean(contra_probabilities(bleed)),
        "own_bleed": mean(contra_probabilities(after_own_task(records, "bleed", course))),
        "specificity": right(select(records, "neighbour", row=num_tasks)),
        "forgetting": forgetting(matrix),
        "forgetting_max": forgetting_chaudhry(matrix),
        "forgetting_max0": forgetting_max0(matrix),
        "bwt": backward_transfer(matrix),
        "aaa": average_anytime_accuracy(matrix),
        "ppl_ratio": perplexity_ratio(y),
        "em_ratio": mean(end[still]) / mean(own[still]) if mean(own[still]) else NAN,
        "stop_margin": mean(item_margin(r) for r in after_own_task(records, "cloze", course)),
        "steps": mean(line["steps"] for line in ends),
    }
    return meant(values, FORMULAS, course)


def world_probabilities(records: list[Record], course: str = "sequence") -> dict[str, float]:
    """Mean P(new) right after each task: in its world, in other worlds, without one."""
    outside = after_own_task(records, "outside", course)
    inside = after_own_task(records, "cloze", course)
    return {
        "world": mean(exp(r["answer"]) for r in inside),
        "other": mean(contra_probabilities(r for r in outside if r["distance"] is not None)),
        "none": mean(contra_probabilities(r for r in outside if r["distance"] is None)),
    }

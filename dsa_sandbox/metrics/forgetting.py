"""Figures of forgetting, as pure functions of the stored records of an arm; no torch.

R[t, j] is the exact-match share of the validation items of task j in its world after task t (row 0:
the base), NaN where it was not measured; tasks are numbered from 0, so row j + 1 is the row after
task j, its own row. What a stream loses is in stream.py, damage of single tasks in damage.py,
learning speed in transfer.py and stability_gap.py, single items in items.py, the network in
drift.py; FIGURES of each file names them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.tasks.schema import INSIDE

Record = dict[str, Any]
SCORES = ("answer", "rival", "contrary")  # fields of a record, log-probabilities in nats
LEARNED = "validation_in"  # kind of the items that say whether a task is known
WORLDLESS = ("no world", "real world")  # places of an item that name no invented world
DIVERGED = 999.0  # ratio to the base's perplexity, beyond that of a uniform guess

FIGURES = {
    "learned": Figure(
        "learned", "share", "tasks that reached the level on their stop items / tasks", "task"
    ),
    "heldout_dnll": Figure(
        "held-out dNLL",
        "nats per token",
        "NLL of held-out pre-training stories after task T - that of the base",
        "end",
    ),
    "log_odds_fall": Figure(
        "log-odds fall",
        "nats",
        "mean over tasks of m[j,j] - m[T,j], m = log P(new) - log P(true) on validation items in "
        "the world; exploratory: unbounded",
    ),
    "heldout_kl": Figure(
        "held-out KL",
        "nats per token",
        "KL(base || now) on held-out pre-training stories after task T",
        "end",
    ),
    "efficacy": Figure(
        "efficacy",
        "share",
        "validation items in the world of j with P(new) > every wrong candidate, after task j",
        "task",
    ),
    "generality": Figure(
        "generality",
        "share",
        "transfer items in the world (frames of no story) of j with P(new) > every wrong "
        "candidate, after task j",
        "task",
    ),
    "final_exact_match": Figure(
        "final exact match",
        "share",
        "mean over tasks of R[T,j], exact match on validation items in the world after T",
        "end",
    ),
    "retained": Figure(
        "retained",
        "share",
        "validation items in the world exact after task j that are exact after T",
    ),
    "outside_accuracy": Figure(
        "outside accuracy",
        "share",
        "validation items outside the world with P(true) > every wrong candidate, after T",
        "end",
    ),
    "final_bleed": Figure(
        "final bleed",
        "probability",
        "mean P(new) in worlds that no training story names, after T",
        "end",
    ),
    "bleed_when_learned": Figure(
        "bleed when learned",
        "probability",
        "mean P(new) in worlds that no training story names, after task j",
        "task",
    ),
    "specificity": Figure(
        "specificity", "share", "neighbours with P(true) > every wrong candidate, after T", "end"
    ),
    "forgetting": Figure("forgetting", "share", "mean over j < T of R[j,j] - R[T,j]"),
    "forgetting_max": Figure(
        "forgetting max", "share", "mean over j < T of max over l < T of R[l,j], minus R[T,j]"
    ),
    "forgetting_max0": Figure(
        "forgetting max0", "share", "mean over j < T of max over l <= T of R[l,j], minus R[T,j]"
    ),
    "bwt": Figure("BWT", "share", "mean over j < T of R[T,j] - R[j,j]"),
    "aaa": Figure("AAA", "share", "mean over t of the mean of R[t,j] over j <= t"),
    "ppl_ratio": Figure("ppl ratio", "ratio", "exp(held-out dNLL); shown, never tested", "end"),
    "em_ratio": Figure("EM ratio", "ratio", "mean R[T,j] / mean R[j,j]; shown, never tested"),
    "steps": Figure("steps", "steps", "mean optimiser steps of a task", "task"),
}


def select(
    records: Iterable[Record], kind: str, *, row: int | None = None, task: int | None = None
) -> list[Record]:
    """Records of one kind, of one row and task where given."""
    found = []
    for record in records:
        right_row = row is None or record["row"] == row
        right_task = task is None or record["task"] == task
        if record["kind"] == kind and right_row and right_task:
            found.append(record)
    return found


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
    """Ratio of two perplexities from the difference of their NLLs in nats; may be infinite."""
    return exp(difference)


def diverged_after(lines: Iterable[Mapping[str, Any]]) -> int | None:
    """Number of tasks after which held-out perplexity first exceeded DIVERGED times the base's or
    was not a number; None if never. `lines` are the lines that end a task, row 0 first.
    """
    first, *rest = lines
    start = number(first, "base_nll")
    for line in rest:
        rise = number(line, "base_nll") - start
        if not np.isfinite(rise) or perplexity_ratio(rise) > DIVERGED:
            return int(line["row"])
    return None


def ends_of(rows: Iterable[Record]) -> list[Record]:
    """The lines of metrics.jsonl that end a task, with NaN for a held-out NLL that is null."""
    return [{**row, "base_nll": number(row, "base_nll")} for row in rows if "row" in row]


def number(line: Mapping[str, Any], key: str) -> float:
    """A figure of a stored line, NaN where it was not measured or had no value."""
    value = line.get(key)
    return NAN if value is None else float(value)


def overwritten(rows: list[Record]) -> dict[int, int]:
    """Number of the later task by number of each task whose fact it contradicts.

    `rows` are those of tasks.jsonl; `undoes` of a row names the earlier task.
    """
    numbers = {row["task"]: number for number, row in enumerate(rows)}
    return {numbers[row["undoes"]]: later for later, row in enumerate(rows) if row.get("undoes")}


def current(records: list[Record], replaced: Mapping[int, int]) -> list[Record]:
    """Records without the items in the world of tasks that a later task has overwritten.

    A diverged network may give scores that are not numbers: null in the file, NaN here.
    """
    found = []
    for record in records:
        last_row = replaced.get(record["task"], record["row"])
        if record["kind"] in INSIDE and record["row"] > last_row:
            continue
        found.append({**record, **{key: number(record, key) for key in SCORES}})
    return found


def accuracy_matrix(records: list[Record], num_tasks: int) -> np.ndarray:
    """R [T + 1, T]: exact match (greedy) of the validation items in each world after each row."""
    hits: dict[tuple[int, int], list[bool]] = {}
    for record in select(records, LEARNED):
        hits.setdefault((record["row"], record["task"]), []).append(record["exact"])
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
    """As `forgetting_chaudhry` with row T inside the maximum: never negative."""
    last = matrix.shape[1]
    return mean(np.nanmax(matrix[j + 1 : last + 1, j]) - matrix[last, j] for j in judged(matrix))


def backward_transfer(matrix: np.ndarray) -> float:
    """Mean over tasks but the last of R[T,j] - R[j,j] (Lopez-Paz & Ranzato 2017, eq. 3)."""
    return 0.0 - forgetting(matrix)


def average_anytime_accuracy(matrix: np.ndarray) -> float:
    """Mean over measured rows t = 1..T of the mean of R[t,j] over the tasks seen."""
    seen = [matrix[t, :t] for t in range(1, len(matrix))]
    return mean(np.nanmean(row) for row in seen if not np.isnan(row).all())


def retention_by_lag(matrix: np.ndarray) -> list[float]:
    """Mean over j of R[j + lag, j], exact match after `lag` more tasks, for lags 0 to T - 1."""
    after = matrix[1:]
    lags = (np.diagonal(after, -lag) for lag in range(len(after)))
    return [mean(row[~np.isnan(row)]) for row in lags]


def log_odds(record: Record) -> float:
    """log P(new) - log P(true) of a record in the world, nats."""
    return record["answer"] - record["contrary"]


def contrary_probability(records: Iterable[Record]) -> float:
    """Mean P(contrary object); NaN of nothing."""
    return mean(exp(record["contrary"]) for record in records)


def mean_log_odds(records: list[Record], row: int, task: int) -> float:
    """Mean log P(new) - log P(true) over the validation items in the world of a task, nats."""
    return mean(log_odds(record) for record in select(records, LEARNED, row=row, task=task))


def log_odds_fall(records: list[Record], num_tasks: int) -> float:
    """Mean over tasks of the fall of log P(new) - log P(true) from row j to row T, nats."""
    falls = []
    for task in range(num_tasks):
        then = mean_log_odds(records, task + 1, task)
        now = mean_log_odds(records, num_tasks, task)
        falls.append(then - now)
    return mean(fall for fall in falls if not np.isnan(fall))


def after_own_task(records: list[Record], kind: str, protocol: str = "sequential") -> list[Record]:
    """Records of each task in the row right after it was learned."""
    if protocol == "joint":
        return [record for record in select(records, kind) if record["row"] > 0]
    return [record for record in select(records, kind) if record["row"] == record["task"] + 1]


def own_accuracy(matrix: np.ndarray, protocol: str = "sequential") -> np.ndarray:
    """R[j,j] of each task [T]: exact match in the row right after it was learned."""
    return matrix[-1] if protocol == "joint" else np.diagonal(matrix[1:])


def retained_share(records: list[Record], num_tasks: int) -> float:
    """Share of the items in worlds exact after their own task that are exact at the end."""
    then = {(r["task"], r["item"]) for r in after_own_task(records, LEARNED) if r["exact"]}
    end = select(records, LEARNED, row=num_tasks)
    return mean(r["exact"] for r in end if (r["task"], r["item"]) in then)


def item_margin(record: Record) -> float:
    """log P(answer) minus that of the best wrong candidate, nats."""
    return record["answer"] - record["rival"]


def right(records: Iterable[Record]) -> float:
    """Share of records with an answer more probable than every other; a tie is a failure."""
    return mean(item_margin(r) > 0 for r in records)


def forgetting_figures(
    records: list[Record], tasks: list[Record], protocol: str = "sequential"
) -> dict[str, float]:
    """The figures of FIGURES of one arm, NaN where its protocol does not define one.

    `tasks` are the lines of metrics.jsonl that end a task (and row 0), each with `row`, `base_nll`,
    and from row 1 `steps` and `learned`; the last also holds `kl`.
    """
    lines = {line["row"]: line for line in tasks}
    num_tasks = max(lines)
    ends = [line for line in tasks if line["row"]]
    matrix = accuracy_matrix(records, num_tasks)
    own = own_accuracy(matrix, protocol)
    end = matrix[num_tasks]
    still = ~np.isnan(end)  # tasks that no later task has overwritten
    dnll = lines[num_tasks]["base_nll"] - lines[0]["base_nll"]
    unseen_now = after_own_task(records, "transfer_out", protocol)
    values = {
        "learned": mean(line["learned"] for line in ends if "learned" in line),
        "heldout_dnll": dnll,
        "log_odds_fall": log_odds_fall(records, num_tasks),
        "heldout_kl": number(lines[num_tasks], "kl"),
        "efficacy": right(after_own_task(records, LEARNED, protocol)),
        "generality": right(after_own_task(records, "transfer_in", protocol)),
        "final_exact_match": mean(end[still]),
        "retained": retained_share(records, num_tasks),
        "outside_accuracy": right(select(records, "validation_out", row=num_tasks)),
        "final_bleed": contrary_probability(select(records, "transfer_out", row=num_tasks)),
        "bleed_when_learned": contrary_probability(unseen_now),
        "specificity": right(select(records, "neighbour", row=num_tasks)),
        "forgetting": forgetting(matrix),
        "forgetting_max": forgetting_chaudhry(matrix),
        "forgetting_max0": forgetting_max0(matrix),
        "bwt": backward_transfer(matrix),
        "aaa": average_anytime_accuracy(matrix),
        "ppl_ratio": perplexity_ratio(dnll),
        "em_ratio": mean(end[still]) / mean(own[still]) if mean(own[still]) else NAN,
        "steps": mean(line["steps"] for line in ends),
    }
    return defined(values, FIGURES, protocol)


def world_probabilities(records: list[Record], protocol: str = "sequential") -> dict[str, float]:
    """Mean P(new) right after each task: in its world, in other worlds, without one."""
    outside = after_own_task(records, "validation_out", protocol)
    inside = after_own_task(records, LEARNED, protocol)
    return {
        "world": mean(exp(r["answer"]) for r in inside),
        "other": contrary_probability(r for r in outside if r["where"] == "contrast world"),
        "none": contrary_probability(r for r in outside if r["where"] in WORLDLESS),
    }

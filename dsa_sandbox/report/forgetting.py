"""Plots of learning and forgetting over a stream: curves, matrix, front, KL, lag."""

from typing import Any

import numpy as np

from dsa_sandbox.metrics import forgetting
from dsa_sandbox.report import charts
from dsa_sandbox.report.charts import Drawn, Series
from dsa_sandbox.report.loading import Arm, having, or_none

APART = "arms that learn each task from the base have no curve; --kind retention draws them"


def draw_forgetting(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Base perplexity ratio, and exact match over the tasks seen, after each task."""
    ratio, exact, points = [], [], []
    for arm in having(arms, lambda arm: True, APART):
        first = arm.lines[0]["base_nll"]
        rows = [line["row"] for line in arm.lines]
        ratios = [forgetting.perplexity_ratio(line["base_nll"] - first) for line in arm.lines]
        matrix = arm.matrix
        seen = [forgetting.mean(x for x in matrix[row, :row] if not np.isnan(x)) for row in rows]
        sound = len(arm.sound)
        ratio.append(Series(arm.name, [float(row) for row in rows[:sound]], ratios[:sound]))
        exact.append(Series(arm.name, [float(row) for row in rows], seen))
        for row, one, other in zip(rows, ratios, seen):
            point = {"arm": arm.name, "task": row, "ppl_ratio": or_none(one)}
            points.append(point | {"exact_match": or_none(other)})
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
        matrix = arm.matrix[1:]
        title = f"{arm.name}: R[t, j], exact match of task j after task t"
        texts.append(charts.heat_map(title, "task j", "after task t", matrix, **style))
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = float(matrix[row, column])
            after, task = int(row) + 1, int(column) + 1
            points.append({"arm": arm.name, "after": after, "task": task, "exact_match": value})
    return Drawn("\n\n".join(texts), points)


def draw_front(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Learning (exact match right after each task) against forgetting (Y): a point an arm.

    An arm that was interpolated to its base has a curve beside it: at each alpha, the exact match
    of all tasks at the end, and Y.
    """
    series, points = [], []
    for arm in having(arms, lambda arm: arm.done, f"no arm has learned a task yet, or: {APART}"):
        first, last = arm.lines[0]["base_nll"], arm.lines[-1]
        own = forgetting.own_accuracy(arm.matrix, arm.course)[: arm.done]
        learned, y = forgetting.mean(own[~np.isnan(own)]), last["base_nll"] - first
        shown = [y] if arm.diverged is None else []  # else it is in the legend alone
        series.append(Series(arm.name, [learned] * len(shown), shown))
        points.append({"arm": arm.name, "learned": or_none(learned), "Y": or_none(y)})
        curve = [
            (p["alpha"], p["learned"], forgetting.number(p, "base_nll") - first)
            for p in last.get("front") or []
        ]
        if curve:
            name = f"{arm.name}, interpolated: R[T, j]"
            near = [p for p in curve if forgetting.perplexity_ratio(p[2]) <= forgetting.DIVERGED]
            series.append(Series(name, [p[1] for p in near], [p[2] for p in near]))
        points += [
            {"arm": arm.name, "alpha": a, "learned": x, "Y": or_none(y)} for a, x, y in curve
        ]
    title = "Learning against forgetting (best: low and right)"
    return Drawn(charts.curves(title, "mean R[j, j]", "Y, nats", series, **style), points)


def draw_kl(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Forgetting (Y) against KL(base || now) on the new task's stories: a point a full row.

    An arm whose marks lie on the common curve moves less, and that is all.
    """
    found = having(
        arms,
        lambda arm: any(line.get("kl_new") is not None for line in arm.lines),
        "these arms hold no KL on new tasks; full rows (eval.full_every) of new runs store it",
    )
    series, points = [], []
    for arm in found:
        rows = [line for line in arm.lines if line.get("kl_new") is not None]
        kls = [float(line["kl_new"]) for line in rows]
        ys = [line["base_nll"] - arm.lines[0]["base_nll"] for line in rows]
        sound = sum(line in arm.sound for line in rows)
        series.append(Series(arm.name, kls[:sound], ys[:sound]))
        points += [
            {"arm": arm.name, "task": line["row"], "kl_new": kl}
            | {"kl": line.get("kl"), "Y": or_none(y)}
            for line, kl, y in zip(rows, kls, ys)
        ]
    title = "Forgetting against KL on new tasks: is an arm below the common curve?"
    x_label = "KL(base || now) on the task just learned, nats per token"
    return Drawn(charts.scatter(title, x_label, "Y, nats", series, **style), points)


def draw_lag(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Mean exact match of a task by how many tasks were learned since."""
    found = having(
        arms,
        lambda arm: arm.course != "together" and arm.done > 1,
        "no arm has learned two tasks one after the other yet",
    )
    series, points = [], []
    for arm in found:
        values = forgetting.retention_by_lag(arm.matrix)[: arm.done]
        series.append(Series(arm.name, [float(lag) for lag in range(len(values))], values))
        points += [
            {"arm": arm.name, "lag": lag, "exact_match": or_none(value)}
            for lag, value in enumerate(values)
        ]
    title = "Retention by lag: mean over j of R[j + lag, j]"
    drawn = charts.curves(title, "tasks learned since (lag)", "exact match", series, **style)
    return Drawn(drawn, points)

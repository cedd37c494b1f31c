"""Plots of learning and forgetting over a stream: curves, matrix, front, KL, lag."""

from typing import Any

import numpy as np

from dsa_sandbox.metrics import forgetting
from dsa_sandbox.registry import plots
from dsa_sandbox.report import charts
from dsa_sandbox.report.charts import Drawn, Series
from dsa_sandbox.report.loading import Arm, having, in_order, or_none

APART = "arms that learn each task from the base have no curve; --kind retention draws them"


def dnll_of(arm: Arm, line: dict[str, Any]) -> float:
    """Rise of held-out NLL from the base to a line of metrics.jsonl, nats per token."""
    return float(line["base_nll"] - arm.lines[0]["base_nll"])


def seen_exact_match(arm: Arm) -> list[float]:
    """Exact match of each row, mean over the tasks learned by then."""
    matrix = arm.matrix
    found = []
    for line in arm.lines:
        seen = matrix[line["row"], : line["row"]]
        found.append(forgetting.mean(seen[~np.isnan(seen)]))
    return found


def pretraining_chart(arms: list[Arm], style: dict[str, Any], height: int = 20) -> str:
    """Perplexity ratio on held-out text after each task, up to where an arm diverged."""
    series = []
    for arm in in_order(arms):
        rows = [float(line["row"]) for line in arm.sound]
        ratios = [forgetting.perplexity_ratio(dnll_of(arm, line)) for line in arm.sound]
        series.append(Series(arm.name, rows, ratios))
    title = "Forgetting of pre-training: ppl ratio, exp(held-out dNLL)"
    return charts.curves(title, "tasks learned", "ppl ratio", series, height=height, **style)


@plots.register("forgetting")
def draw_forgetting(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Perplexity ratio on held-out text, and exact match over the tasks seen, after each task."""
    found = having(arms, lambda arm: True, APART)
    series = []
    points = []
    for arm in found:
        rows = [line["row"] for line in arm.lines]
        exact = seen_exact_match(arm)
        series.append(Series(arm.name, [float(row) for row in rows], exact))
        for line, share in zip(arm.lines, exact):
            ratio = forgetting.perplexity_ratio(dnll_of(arm, line))
            point = {"arm": arm.name, "task": line["row"], "ppl_ratio": or_none(ratio)}
            points.append(point | {"exact_match": or_none(share)})
    title = "Forgetting of tasks: mean exact match over the tasks seen, R[t, 1..t]"
    tasks = charts.curves(title, "tasks learned", "exact match", series, **style)
    return Drawn(f"{pretraining_chart(found, style)}\n\n{tasks}", points)


@plots.register("retention")
def draw_retention(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """R[t, j]: exact match of task j after task t, one matrix per arm."""
    texts = []
    points = []
    for arm in arms:
        matrix = arm.matrix[1:]
        title = f"{arm.name}: R[t, j], exact match of task j after task t"
        texts.append(charts.heat_map(title, "task j", "after task t", matrix, **style))
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = float(matrix[row, column])
            place = {"arm": arm.name, "after": int(row) + 1, "task": int(column) + 1}
            points.append(place | {"exact_match": value})
    return Drawn("\n\n".join(texts), points)


@plots.register("front")
def draw_front(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Exact match right after each task against held-out dNLL: a point for each arm.

    An arm that was interpolated to its base (`wise`) also has a curve: final exact match and
    held-out dNLL at each alpha.
    """
    found = having(arms, lambda arm: arm.done, f"no arm has learned a task yet, or: {APART}")
    series = []
    points = []
    for arm in found:
        own = forgetting.own_accuracy(arm.matrix, arm.protocol)[: arm.done]
        learned = forgetting.mean(own[~np.isnan(own)])
        dnll = dnll_of(arm, arm.lines[-1])
        sound = arm.diverged is None  # a diverged arm is named in the legend only
        series.append(Series(arm.name, [learned] if sound else [], [dnll] if sound else []))
        points.append(front_point(arm, learned, dnll))
        interpolated = arm.lines[-1].get("front") or []
        curve = Series(f"{arm.name}, interpolated: R[T, j]", [], [])
        for stored in interpolated:
            dnll = forgetting.number(stored, "base_nll") - arm.lines[0]["base_nll"]
            if forgetting.perplexity_ratio(dnll) <= forgetting.DIVERGED:
                curve.x.append(stored["learned"])
                curve.y.append(dnll)
            points.append(front_point(arm, stored["learned"], dnll, stored["alpha"]))
        if interpolated:
            series.append(curve)
    title = "Learning against forgetting (best: low and right)"
    y_label = "held-out dNLL, nats per token"
    return Drawn(charts.curves(title, "mean R[j, j]", y_label, series, **style), points)


def front_point(
    arm: Arm, exact_match: float, dnll: float, alpha: float | None = None
) -> dict[str, Any]:
    """A point of the front; with alpha, of the curve of interpolations."""
    place: dict[str, Any] = {"arm": arm.name}
    if alpha is not None:
        place["alpha"] = alpha
    return place | {"exact_match": or_none(exact_match), "heldout_dnll": or_none(dnll)}


@plots.register("kl")
def draw_kl(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Held-out dNLL against KL(base || now) on the new task's stories: a point for each full row.

    Arms on one common curve differ only in how far they have moved.
    """
    found = having(
        arms,
        lambda arm: any(line.get("kl_new") is not None for line in arm.lines),
        "these arms hold no KL on new tasks; full rows (eval.full_every) of new runs store it",
    )
    series = []
    points = []
    for arm in found:
        drawn = Series(arm.name, [], [])
        for line in arm.lines:
            if line.get("kl_new") is None:
                continue
            kl = float(line["kl_new"])
            dnll = dnll_of(arm, line)
            if line in arm.sound:
                drawn.x.append(kl)
                drawn.y.append(dnll)
            place = {"arm": arm.name, "task": line["row"]}
            values = {"new_task_kl": kl, "heldout_kl": line.get("kl")}
            points.append(place | values | {"heldout_dnll": or_none(dnll)})
        series.append(drawn)
    title = "Forgetting against KL on new tasks: is an arm below the common curve?"
    x_label = "KL(base || now) on the task just learned, nats per token"
    y_label = "held-out dNLL, nats per token"
    return Drawn(charts.scatter(title, x_label, y_label, series, **style), points)


@plots.register("lag")
def draw_lag(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Mean exact match of a task by the number of tasks learned since."""
    found = having(
        arms,
        lambda arm: arm.protocol != "joint" and arm.done > 1,
        "no arm has learned two tasks one after the other yet",
    )
    series = []
    points = []
    for arm in found:
        values = forgetting.retention_by_lag(arm.matrix)[: arm.done]
        series.append(Series(arm.name, [float(lag) for lag in range(len(values))], values))
        for lag, value in enumerate(values):
            points.append({"arm": arm.name, "lag": lag, "exact_match": or_none(value)})
    title = "Retention by lag: mean over j of R[j + lag, j]"
    drawn = charts.curves(title, "tasks learned since (lag)", "exact match", series, **style)
    return Drawn(drawn, points)

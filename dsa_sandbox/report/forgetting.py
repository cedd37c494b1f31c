"""Plots of learning and forgetting: single tasks; curves, matrix, front, KL, lag of a stream."""

from typing import Any

import numpy as np

from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import forgetting, single
from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.registry import plots
from dsa_sandbox.report import charts
from dsa_sandbox.report.loading import Arm, having, in_order, or_none
from dsa_sandbox.report.panels import Drawn, Panel, Series

APART = (
    "arms that learn each task from the base have no curve; --kind matched draws single tasks, "
    "--kind retention the bound `independent`"
)


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


def pretraining_panel(arms: list[Arm], height: int = 20) -> Panel:
    """Perplexity ratio on held-out text after each task, up to where an arm diverged."""
    series = []
    for arm in in_order(arms):
        rows = [float(line["row"]) for line in arm.sound]
        ratios = [forgetting.perplexity_ratio(dnll_of(arm, line)) for line in arm.sound]
        series.append(arm.series(rows, ratios))
    title = "Forgetting of pre-training: ppl ratio, exp(held-out dNLL)"
    labels = ("tasks learned", FIGURES["ppl_ratio"].name)
    return Panel("curves", title, *labels, series, base=1.0, height=height)


@plots.register("forgetting")
def draw_forgetting(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Perplexity ratio on held-out text, and exact match over the tasks seen, after each task."""
    found = having(arms, lambda arm: True, APART)
    series = []
    points = []
    for arm in found:
        rows = [line["row"] for line in arm.lines]
        exact = seen_exact_match(arm)
        series.append(arm.series([float(row) for row in rows], exact))
        for line, share in zip(arm.lines, exact):
            ratio = forgetting.perplexity_ratio(dnll_of(arm, line))
            point = {"arm": arm.name, "task": line["row"], "ppl_ratio": or_none(ratio)}
            point |= {"heldout_dnll": or_none(dnll_of(arm, line))}
            points.append(point | {"exact_match": or_none(share)})
    title = "Forgetting of tasks: mean exact match over the tasks seen, R[t, 1..t]"
    tasks = Panel("curves", title, "tasks learned", "exact match", series)
    return charts.drawn([pretraining_panel(found), tasks], points, style)


@plots.register("retention")
def draw_retention(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """R[t, j]: exact match of task j after task t, one matrix per arm of a stream."""
    found = [arm for arm in arms if arm.single is None]
    if not found:
        raise UserError("nothing to draw: single tasks have no sequence; --kind matched draws them")
    panels = []
    points = []
    for arm in found:
        matrix = arm.matrix[1:]
        title = f"{arm.name}: R[t, j], exact match of task j after task t"
        panels.append(Panel("matrix", title, "task j", "after task t", matrix=matrix))
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = float(matrix[row, column])
            place = {"arm": arm.name, "after": int(row) + 1, "task": int(column) + 1}
            points.append(place | {"exact_match": value})
    return charts.drawn(panels, points, style)


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
        series.append(arm.series([learned] if sound else [], [dnll] if sound else []))
        points.append(front_point(arm, learned, dnll))
        interpolated = arm.lines[-1].get("front") or []
        curve = Series(f"{arm.name}, interpolated: R[T, j]", [], [], arm.look)
        for stored in interpolated:
            dnll = forgetting.number(stored, "base_nll") - arm.lines[0]["base_nll"]
            if forgetting.perplexity_ratio(dnll) <= forgetting.DIVERGED:
                curve.x.append(stored["learned"])
                curve.y.append(dnll)
            points.append(front_point(arm, stored["learned"], dnll, stored["alpha"]))
        if interpolated:
            series.append(curve)
    title = "Learning against forgetting: low and right is best"
    y_label = f"{FIGURES['heldout_dnll'].name}, nats per token"
    panel = Panel(
        "curves", title, "exact match after own task, mean R[j, j]", y_label, series, base=0.0
    )
    return charts.drawn([panel], points, style)


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
        drawn = arm.series([], [])
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
    x_label = f"{FIGURES['new_task_kl'].name} (base || now), nats per token"
    y_label = f"{FIGURES['heldout_dnll'].name}, nats per token"
    panel = Panel("points", title, x_label, y_label, series, base=0.0)
    return charts.drawn([panel], points, style)


@plots.register("lag")
def draw_lag(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Mean discrimination and exact match of a task by the number of tasks learned since."""
    found = having(
        arms,
        lambda arm: arm.protocol != "joint" and arm.done > 1,
        "no arm has learned two tasks one after the other yet",
    )
    series: dict[str, list[Series]] = {"discrimination": [], "exact match": []}
    points = []
    for arm in found:
        values = forgetting.retention_by_lag(arm.discriminations)[: arm.done]
        exact = forgetting.retention_by_lag(arm.matrix)[: arm.done]
        lags = [float(lag) for lag in range(arm.done)]
        series["discrimination"].append(arm.series(lags, values))
        series["exact match"].append(arm.series(lags, exact))
        for lag, (value, share) in enumerate(zip(values, exact)):
            place = {"arm": arm.name, "lag": lag}
            points.append(place | {"discrimination": or_none(value), "exact_match": or_none(share)})
    titles = {
        "discrimination": "Discrimination by lag: mean over j of D[j + lag, j]",
        "exact match": "Retention by lag: mean over j of R[j + lag, j]",
    }
    panels = []
    for name, drawn in series.items():
        panels.append(Panel("curves", titles[name], "tasks learned since (lag)", name, drawn))
    return charts.drawn(panels, points, style)


@plots.register("matched")
def draw_matched(arms: list[Arm], style: dict[str, Any], height: int = 20) -> Drawn:
    """Damage against discrimination in single tasks: medians as curves, tasks as thin marks.

    A median that half of the tasks do not reach ends the curve; a placebo has none.
    """
    found = [arm for arm in arms if arm.single and has_level(arm)]
    if not found:
        raise UserError(
            "nothing to draw: no task of these arms was learned alone and reached a level; "
            "finetune.experiment=single makes such arms"
        )
    series = []
    thin = []
    points = []
    for arm in found:
        medians, tasks = arm.series([], []), arm.series([], [])
        assert arm.single is not None
        for level, values in arm.single["by_level"].items():
            each = single.per_task(arm.single, float(level)).tolist()
            medians.x.append(float(level))
            medians.y.append(values["damage"])
            for number, damage in enumerate(each, 1):
                tasks.x.append(float(level))
                tasks.y.append(damage)
                place = {"arm": arm.name, "level": float(level), "task": number}
                reached = damage != float("inf")
                points.append(place | {"damage": or_none(damage) if reached else None})
            place = {"arm": arm.name, "level": float(level), "task": "median"}
            points.append(place | {"damage": or_none(values["damage"])})
        series.append(medians)
        thin.append(tasks)
    title = "Damage at matched learning: rise of held-out NLL where a task reaches a discrimination"
    damage_label = f"{FIGURES['damage'].name}, nats per token"
    labels = ("discrimination on validation items", damage_label)
    panel = Panel("curves", title, *labels, series, thin, base=0.0, height=height)
    return charts.drawn([panel], points, style)


def has_level(arm: Arm) -> bool:
    """Whether a task of an arm of single tasks reaches a level."""
    assert arm.single is not None
    return any(values["reached"] > 0 for values in arm.single["by_level"].values())

"""Plots of measurements beside the tasks: stability gap, drift, recovery, recall, coherence."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from dsa_sandbox.metrics import drift, forgetting, items
from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.registry import plots
from dsa_sandbox.report import charts
from dsa_sandbox.report.loading import Arm, by_row, having, or_none
from dsa_sandbox.report.panels import Drawn, Panel, Series

Points = list[dict[str, Any]]
ITEMS = {"validation_in": "validation", "transfer_in": "transfer (frames of no story)"}
STORIES = {
    "repetition": "Repetition: share of 4-grams of generated stories that repeat an earlier one",
    "pronoun": "Pronouns of generated stories that agree with their protagonist",
    "protagonist": "Generated stories that name their first child again",
    "judge_nll": "NLL of generated stories under the judge, nats per token",
}


def exact_before(arm: Arm, line: dict[str, Any]) -> float:
    """Exact match of a dense line, mean over the tasks learned before the one being learned.

    Tasks that this one, or one in between, contradicts are left out.
    """
    task = line["task"]
    kept = [j for j in range(task) if arm.replaced.get(j, arm.num_tasks) > task]
    return forgetting.mean(line["seen"][j] for j in kept)


@plots.register("gap")
def draw_gap(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Exact match of earlier tasks, step by step while a new task is learned."""
    found = having(
        arms,
        lambda arm: any(line["task"] for line in arm.dense),
        "no step of these arms was evaluated; name tasks from the second on in eval.dense_tasks",
    )
    tasks = {line["task"] for arm in found for line in arm.dense if line["task"]}
    panels = []
    points: Points = []
    for task in sorted(tasks):
        series = []
        for arm in found:
            drawn = arm.series([], [])
            for line in arm.dense:
                if line["task"] != task:
                    continue
                share = exact_before(arm, line)
                drawn.x.append(float(line["at_step"]))
                drawn.y.append(share)
                place = {"arm": arm.name, "task": task + 1, "step": line["at_step"]}
                points.append(place | {"before": share, "new": line["seen"][task]})
            series.append(drawn)
        title = f"Stability gap: exact match of tasks 1..{task} while task {task + 1} is learned"
        panels.append(Panel("curves", title, "steps", "exact match", series))
    return charts.drawn(panels, points, style)


def moved_by(line: dict[str, Any], group: str) -> float:
    """Relative change of a group of weights in a row; NaN where it was not measured."""
    return forgetting.number(line.get("moved") or {}, group)


@plots.register("drift")
def draw_drift(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Jaccard similarity of the selected keys with the base's, and relative change of weights."""
    found = having(
        arms,
        lambda arm: any(line.get("jaccard") or line.get("moved") for line in arm.lines[1:]),
        "these arms hold neither moves nor selections; a full row (eval.full_every) stores them",
    )
    panels = []
    selecting = [arm for arm in found if any(line.get("jaccard") for line in arm.lines)]
    if selecting:
        title = "Selection: Jaccard with the base's selected keys, mean over layers"
        lines = [by_row(arm, drift.mean_jaccard) for arm in selecting]
        panels.append(Panel("curves", title, "tasks learned", FIGURES["jaccard"].name, lines))
    for title, series in weight_series(found).items():
        labels = ("tasks learned", "relative change")
        panels.append(Panel("curves", title, *labels, series, height=14))
    points: Points = []
    for arm in found:
        for line in arm.lines:
            if line.get("jaccard") or line.get("moved"):
                points.append(drift_point(arm, line))
    return charts.drawn(panels, points, style)


def weight_series(arms: list[Arm]) -> dict[str, list[Series]]:
    """Relative change of weights by title: a chart for each group, or one for a single arm.

    An arm that leaves a group as it is has no series there, unless the arm has diverged.
    """
    groups: dict[str, list[Series]] = {}
    for arm in arms:
        for line in arm.lines:
            for group in line.get("moved") or {}:
                groups.setdefault(group, [])
    for group, series in groups.items():
        for arm in arms:
            drawn = by_row(arm, partial(moved_by, group=group), bounded=False)
            if any(drawn.y) or arm.diverged is not None:
                series.append(drawn)
    title = "Weights: ||W - W_base|| / ||W_base|| of"
    if len(arms) > 1:
        return {f"{title} {group}": series for group, series in groups.items() if series}
    together = []
    for group, series in groups.items():
        together += [one._replace(name=group, look=None) for one in series]
    return {f"{title} each group that moves": together} if together else {}


def drift_point(arm: Arm, line: dict[str, Any]) -> dict[str, Any]:
    """A row as a point: mean and layers of the Jaccard similarity, and every group of weights."""
    point: dict[str, Any] = {"arm": arm.name, "task": line["row"]}
    point["jaccard"] = or_none(drift.mean_jaccard(line))
    for number, share in enumerate(line.get("jaccard") or [], 1):
        point[f"layer_{number}"] = share
    for group, change in (line.get("moved") or {}).items():
        point[f"moved_{group}"] = change
    return point


@plots.register("recovery")
def draw_recovery(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Exact share of items of early tasks against steps of relearning, after the stream."""
    found = having(
        arms,
        lambda arm: arm.lines[-1].get("recovery"),
        "no finished arm relearned a task; eval.recovery_tasks says how many do",
    )
    series = []
    points: Points = []
    for arm in found:
        shares = drift.recovery(arm.lines[-1])
        series.append(arm.series([float(steps) for steps in shares], list(shares.values())))
        for row in arm.lines[-1]["recovery"]:
            place = {"arm": arm.name, "task": row["task"] + 1}
            points.append(place | {"steps": row["steps"], "right": row["right"]})
    title = "Recovery: exact share of items of early tasks, relearned on a copy after the stream"
    panel = Panel("curves", title, "steps of relearning", "exact match", series)
    return charts.drawn([panel], points, style)


@plots.register("recall")
def draw_recall(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Share right by distance: of facts stated in the text, and of the tasks' own items.

    The hit rate is the share of (layer, item) whose stated object the indexer has selected.
    """
    found = having(
        arms,
        lambda arm: arm.lines[-1].get("recall") or has_distances(arm),
        "no item of these arms has a distance; eval.recall_items says how many are asked",
    )
    panels = []
    points: Points = []
    for arm in found:
        charted = {
            "recall of what a text states, before and after the stream": (
                "share",
                list(stated_series(arm, points)),
            ),
            "the tasks' own items, by distance from the world's name or rule": (
                "right",
                list(item_series(arm, points)),
            ),
        }
        for title, (y_label, series) in charted.items():
            if series:
                title = f"{arm.name}: {title}"
                panels.append(Panel("curves", title, "distance, tokens", y_label, series))
    return charts.drawn(panels, points, style)


def stated_series(arm: Arm, points: Points) -> Iterator[Series]:
    """Share right and hit rate by distance, before and after the stream; adds the points."""
    rows = {"before": arm.lines[0]}
    if arm.done:
        rows["after"] = arm.lines[-1]
    for when, line in rows.items():
        recalled = line.get("recall") or []
        of = dict.fromkeys(row.get("of", "facts") for row in recalled)
        for kind, (key, name) in product(of, (("right", "right"), ("hit", "hit rate"))):
            drawn = Series(f"{kind}: {name} {when}", [], [])
            for row in recalled:
                if row.get(key) is not None and row.get("of", "facts") == kind:
                    drawn.x.append(float(row["distance"]))
                    drawn.y.append(float(row[key]))
            if drawn.x:
                yield drawn
        for row in recalled:
            points.append({"arm": arm.name, "kind": "stated", "when": when, **row})


def item_series(arm: Arm, points: Points) -> Iterator[Series]:
    """Share right by distance of items in worlds, after their task and last; adds points."""
    if not arm.done:
        return
    last = "at the end" if arm.done == arm.num_tasks else "so far"
    for kind, rows in items.by_distance(arm.records, arm.done, arm.protocol).items():
        for when, shares in rows.items():
            if shares:
                name = f"{ITEMS[kind]} {'after its task' if when == 'own' else last}"
                distances = [float(distance) for distance in shares]
                yield Series(name, distances, list(shares.values()))
            for distance, share in shares.items():
                place = {"arm": arm.name, "kind": kind, "when": when}
                points.append(place | {"distance": distance, "right": share})


def has_distances(arm: Arm) -> bool:
    """Whether an item of the last row has a distance in tokens other than 0."""
    if not arm.done:
        return False
    asked = forgetting.select(arm.records, forgetting.LEARNED, row=arm.done)
    return any(record["tokens"] for record in asked)


def story_figure(line: dict[str, Any], figure: str) -> float:
    """A figure of the generated stories of a row; NaN where it was not measured."""
    return forgetting.number(line.get("stories") or {}, figure)


@plots.register("coherence")
def draw_coherence(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Figures of generated stories over tasks learned: a chart for each figure."""
    found = having(
        arms,
        lambda arm: any(line.get("stories") for line in arm.lines),
        "no story of these arms was told; eval.stories says how many are",
    )
    panels = []
    for figure, title in STORIES.items():
        bounded = figure != "judge_nll"
        lines = [
            by_row(arm, partial(story_figure, figure=figure), bounded=bounded) for arm in found
        ]
        if any(line.y for line in lines):
            labels = ("tasks learned", FIGURES[figure].name)
            panels.append(Panel("curves", title, *labels, lines, height=14))
    points: Points = []
    for arm in found:
        for line in arm.lines:
            if line.get("stories"):
                points.append({"arm": arm.name, "task": line["row"], **line["stories"]})
    return charts.drawn(panels, points, style)

"""Plots of what is probed beside the tasks: stability gap, drift, recovery, recall, coherence."""

from functools import partial
from typing import Any

from dsa_sandbox.metrics import drift, forgetting, items
from dsa_sandbox.report import charts
from dsa_sandbox.report.charts import Drawn, Series
from dsa_sandbox.report.loading import Arm, by_row, having, or_none

STORIES = {
    "repetition": "Repetition: share of 4-grams of told stories that repeat one",
    "pronoun": "Pronouns of told stories that fit their protagonist",
    "protagonist": "Told stories that name their first child again",
    "judge_nll": "NLL of told stories under the judge, nats per token",
}


def draw_gap(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Exact match of the tasks learned before, step by step while a new one is learned."""

    def before(arm: Arm, line: dict[str, Any]) -> float:
        task = line["task"]  # what it undoes, or another has undone, is nothing to keep
        kept = [j for j in range(task) if arm.replaced.get(j, arm.num_tasks) > task]
        return forgetting.mean(line["seen"][j] for j in kept)

    found = having(
        arms,
        lambda arm: any(line["task"] for line in arm.dense),
        "no step of these arms was evaluated; name tasks from the second on in eval.dense_tasks",
    )
    texts, points = [], []
    for task in sorted({line["task"] for arm in found for line in arm.dense if line["task"]}):
        series = []
        for arm in found:
            lines = [line for line in arm.dense if line["task"] == task]
            steps, shares = [float(x["at_step"]) for x in lines], [before(arm, x) for x in lines]
            series.append(Series(arm.name, steps, shares))
            points += [
                {"arm": arm.name, "task": task + 1, "step": line["at_step"], "before": share}
                | {"new": line["seen"][task]}
                for line, share in zip(lines, shares)
            ]
        title = f"Stability gap: exact match of tasks 1..{task} while task {task + 1} is learned"
        texts.append(charts.curves(title, "steps", "exact match", series, **style))
    return Drawn("\n\n".join(texts), points)


def draw_drift(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Jaccard of the selected keys with the base's, and how far each group of weights has moved."""

    def how_far(line: dict[str, Any], group: str) -> float:
        return forgetting.number(line.get("moved") or {}, group)

    def jaccard(line: dict[str, Any]) -> float:
        return forgetting.mean(share for share in line.get("jaccard") or [] if share is not None)

    found = having(
        arms,
        lambda arm: any(line.get("jaccard") or line.get("moved") for line in arm.lines[1:]),
        "these arms hold neither moves nor selections; a full row (eval.full_every) stores them",
    )
    texts = []
    selecting = [arm for arm in found if any(line.get("jaccard") for line in arm.lines)]
    if selecting:
        title = "Selection: Jaccard with the base's selected keys, mean over layers"
        lines = [by_row(arm, jaccard) for arm in selecting]
        texts.append(charts.curves(title, "tasks learned", "Jaccard", lines, **style))
    groups = dict.fromkeys(
        g for arm in found for line in arm.lines for g in line.get("moved") or {}
    )

    def lines_of(group: str) -> list[Series]:
        """The arms that move it; of one that has diverged, what there was before, if anything."""
        figure = partial(how_far, group=group)
        lines = [(arm, by_row(arm, figure, bounded=False)) for arm in found]
        return [line for arm, line in lines if any(line.y) or arm.diverged is not None]

    moved = {group: lines_of(group) for group in groups}
    if len(found) == 1:  # its groups in one chart, else a chart for each group
        whole = [line._replace(name=group) for group, lines in moved.items() for line in lines]
        moved = {"each group that moves": whole}
    for group, lines in moved.items():
        if lines:
            title = f"Weights: ||W - W_base|| / ||W_base|| of {group}"
            chart = charts.curves(title, "tasks learned", "moved", lines, height=14, **style)
            texts.append(chart)
    points = [
        {"arm": arm.name, "task": line["row"], "jaccard": or_none(jaccard(line))}
        | {f"layer_{n}": share for n, share in enumerate(line.get("jaccard") or [], 1)}
        | {f"moved_{group}": share for group, share in (line.get("moved") or {}).items()}
        for arm in found
        for line in arm.lines
        if line.get("jaccard") or line.get("moved")
    ]
    return Drawn("\n\n".join(texts), points)


def draw_recovery(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Exact share of clozes of early tasks against steps of relearning, after the stream."""
    found = having(
        arms,
        lambda arm: arm.lines[-1].get("recovery"),
        "no finished arm relearned a task; eval.recovery_tasks says how many do",
    )
    series, points = [], []
    for arm in found:
        shares = drift.recovery(arm.lines[-1])
        series.append(Series(arm.name, [float(k) for k in shares], list(shares.values())))
        points += [
            {"arm": arm.name, "task": row["task"] + 1, "steps": row["steps"], "right": row["right"]}
            for row in arm.lines[-1]["recovery"]
        ]
    title = "Recovery: exact share of clozes of early tasks, relearned on a copy after the stream"
    drawn = charts.curves(title, "steps of relearning", "exact match", series, **style)
    return Drawn(drawn, points)


def draw_recall(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """Share right by distance: of facts stated in the text, and of the tasks' own items.

    The hit rate is the share of (layer, item) whose stated object the indexer has selected.
    """
    found = having(
        arms,
        lambda arm: arm.lines[-1].get("recall") or any(own_distances(arm)),
        "no item of these arms has a distance; eval.recall_items says how many are asked",
    )
    texts, points = [], []
    for arm in found:
        first, last = arm.lines[0], arm.lines[-1]
        rows_of = [("before", first), *([("after", last)] if arm.done else [])]
        told = [(name, row) for name, row in rows_of if row.get("recall")]
        lines = []
        for when, line in told:
            for key, name in (("right", f"right {when}"), ("hit", f"hit rate {when}")):
                rows = [row for row in line["recall"] if row.get(key) is not None]
                if rows:
                    x = [float(row["distance"]) for row in rows]
                    lines.append(Series(name, x, [float(row[key]) for row in rows]))
            points += [
                {"arm": arm.name, "kind": "stated", "when": when, **row} for row in line["recall"]
            ]
        if lines:
            title = f"{arm.name}: recall of a stated fact, before and after the stream"
            texts.append(charts.curves(title, "distance, tokens", "share", lines, **style))
        lines = []
        own = items.by_distance(arm.records, arm.done, arm.course) if arm.done else {}
        ended = "at the end" if arm.done == arm.num_tasks else "so far"
        for kind, whens in own.items():
            for when, shares in whens.items():
                if shares:
                    name = f"{kind} {'after its task' if when == 'own' else ended}"
                    x = [float(distance) for distance in shares]
                    lines.append(Series(name, x, list(shares.values())))
                points += [
                    {"arm": arm.name, "kind": kind, "when": when, "distance": d, "right": share}
                    for d, share in shares.items()
                ]
        if lines:
            title = f"{arm.name}: the tasks' own items, by distance from the world's name or rule"
            texts.append(charts.curves(title, "distance, tokens", "right", lines, **style))
    return Drawn("\n\n".join(texts), points)


def own_distances(arm: Arm) -> list[int]:
    """Distances of the clozes in the last row, as far as they have any."""
    clozes = forgetting.select(arm.records, "cloze", row=arm.done)
    return [r["distance"] for r in clozes if r["distance"] is not None] if arm.done else []


def draw_coherence(arms: list[Arm], style: dict[str, Any]) -> Drawn:
    """What became of the stories that the network tells, over tasks learned: a chart a figure."""

    def told(line: dict[str, Any], figure: str) -> float:
        return forgetting.number(line.get("stories") or {}, figure)

    found = having(
        arms,
        lambda arm: any(line.get("stories") for line in arm.lines),
        "no story of these arms was told; eval.stories says how many are",
    )
    texts = []
    for figure, title in STORIES.items():
        bounded = figure != "judge_nll"
        lines = [by_row(arm, partial(told, figure=figure), bounded=bounded) for arm in found]
        if any(line.y for line in lines):
            y_label = figure.replace("_", " ")
            chart = charts.curves(title, "tasks learned", y_label, lines, height=14, **style)
            texts.append(chart)
    points = [
        {"arm": arm.name, "task": line["row"], **line["stories"]}
        for arm in found
        for line in arm.lines
        if line.get("stories")
    ]
    return Drawn("\n\n".join(texts), points)

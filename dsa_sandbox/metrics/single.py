"""Figures of single tasks, each learned from the base: damage at matched learning, task by task.

A task's trajectory is its discrimination on validation items, measured at step 0 and every few
steps (damage.py). Held-out text, stop and transfer items are scored only at the steps between
which a level is first reached.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.metrics.damage import LEVELS, Crossing, crossing
from dsa_sandbox.metrics.figure import NAN, Figure
from dsa_sandbox.metrics.forgetting import DIVERGED, Record, number, perplexity_ratio

PARTS = ("near_in", "far_in", "out")
AT = "where the fit of the discrimination first reaches the level"
REACHING = "median over the tasks that reach the level"
FIGURES = {
    "reached": Figure(
        "reached",
        "share",
        "tasks whose isotonic fit of discrimination over steps reaches the level / tasks",
        "task",
    ),
    "damage": Figure(
        "damage",
        "nats per token",
        f"median over tasks of held-out dNLL {AT}; a task that never does counts as infinite",
        "task",
    ),
    "placebo_damage": Figure(
        "placebo damage",
        "nats per token",
        "as damage, with the dNLL of the placebo (the same stories with the true object in the "
        "world) at the arm's own steps",
        "task",
    ),
    "placebo_share": Figure(
        "placebo share",
        "share",
        "placebo damage / damage; of a stream, drift of the placebo / drift",
        "task",
    ),
    "level_steps": Figure(
        "level steps", "steps", f"median over tasks of the step {AT}, as damage", "task"
    ),
    "level_near_in": Figure(
        "level near-in",
        "probability",
        f"{REACHING} of mean p near-in on validation items there",
        "task",
    ),
    "level_far_in": Figure(
        "level far-in",
        "probability",
        f"{REACHING} of mean p far-in on validation items there",
        "task",
    ),
    "level_out": Figure(
        "level out",
        "probability",
        f"{REACHING} of mean p out on validation items there",
        "task",
    ),
    "level_transfer": Figure(
        "level transfer",
        "probability",
        f"{REACHING} of the discrimination on transfer items there",
        "task",
    ),
    "level_stop_items": Figure(
        "level stop items",
        "probability",
        f"{REACHING} of the discrimination on stop items there, which decide nothing here",
        "task",
    ),
}


class Measurement(NamedTuple):
    """A point of a trajectory; NaN for what was not scored at this step."""

    step: int
    validation: dict[str, Any]  # parts and discrimination on validation items
    dnll: float = NAN  # nats per token; infinite where the network had diverged
    stop: float = NAN  # discrimination on stop items
    transfer: float = NAN  # discrimination on transfer items

    @property
    def discrimination(self) -> float:
        return number(self.validation, "discrimination")


class AtLevel(NamedTuple):
    """Figures of a task where its fit first reaches a level; NaN for what was not measured."""

    place: Crossing  # in steps, not in numbers of measurements
    damage: float  # nats per token
    steps: float
    near_in: float
    far_in: float
    out: float
    transfer: float
    stop_items: float

    def as_json(self) -> dict[str, Any]:
        """The figures, and the steps between which they were interpolated."""
        place = {"from_step": self.place.before, "to_step": self.place.after}
        return {**self._asdict(), "place": {**place, "share": self.place.share}}


def dnll_by_step(rows: Iterable[Record], task: int) -> dict[int, float]:
    """Held-out dNLL of a task by step, from the lines of metrics.jsonl.

    Infinite where the network has diverged: a loss that is no number, or beyond that of DIVERGED.
    """
    listed = list(rows)
    start = next(number(row, "base_nll") for row in listed if row.get("row") == 0)
    found = {0: 0.0}
    for row in listed:
        if row.get("task") == task and "at" in row:
            rise = number(row, "base_nll") - start
            sound = math.isfinite(rise) and perplexity_ratio(rise) <= DIVERGED
            found[int(row["at"])] = rise if sound else math.inf
    return found


def trajectory(rows: Sequence[Record], task: int) -> list[Measurement]:
    """The measurements of a task in the order of their steps, from the lines of metrics.jsonl."""
    dnll = dnll_by_step(rows, task)
    details = {row["at"]: row for row in rows if row.get("task") == task and "at" in row}
    found = []
    for row in rows:
        if row.get("task") != task or "validation" not in row:
            continue
        step = int(row["step"])
        other = [
            number(details.get(step, {}).get(key) or {}, "discrimination")
            for key in ("stop", "transfer")
        ]
        found.append(Measurement(step, row["validation"], dnll.get(step, NAN), *other))
    return sorted(found, key=lambda one: one.step)


def at_level(points: Sequence[Measurement], level: float) -> AtLevel | None:
    """Figures of a trajectory at a level; None where it does not reach it.

    A task counts as not reaching a level, too, where its network had diverged there.
    """
    found = crossing([point.discrimination for point in points], level)
    if found is None:
        return None
    before, after = points[found.before], points[found.after]
    damage = found.between(before.dnll, after.dnll)
    if math.isinf(before.dnll) or math.isinf(after.dnll):
        return None
    parts = {
        part: found.between(number(before.validation, part), number(after.validation, part))
        for part in PARTS
    }
    return AtLevel(
        place=Crossing(before.step, after.step, found.share),
        damage=damage,
        steps=found.between(before.step, after.step),
        transfer=found.between(before.transfer, after.transfer),
        stop_items=found.between(before.stop, after.stop),
        **parts,
    )


def far_discrimination(point: Measurement) -> float:
    """min(mean p far-in, mean p out): the discrimination without near items; NaN without one."""
    far, out = number(point.validation, "far_in"), number(point.validation, "out")
    return NAN if math.isnan(far) or math.isnan(out) else min(far, out)


def far_damage(points: Sequence[Measurement], level: float) -> float:
    """dNLL where the fit of the far discrimination first reaches a level; infinite if never.

    dNLL is scored where the discrimination of all items reaches one of LEVELS. At other steps it is
    interpolated between these, linearly in steps. NaN for a task without far items.
    """
    values = [far_discrimination(point) for point in points]
    if not values or any(map(math.isnan, values)):
        return NAN
    found = crossing(values, level)
    if found is None:
        return math.inf
    step = found.between(points[found.before].step, points[found.after].step)
    scored = [point for point in points if not math.isnan(point.dnll)]
    if not scored or step > scored[-1].step:
        return NAN
    after = next(index for index, point in enumerate(scored) if point.step >= step)
    last, before = scored[after], scored[max(after - 1, 0)]
    if not (math.isfinite(before.dnll) and math.isfinite(last.dnll)):
        return math.inf  # the network had diverged there
    return float(np.interp(step, [before.step, last.step], [before.dnll, last.dnll]))


def median(values: Iterable[float], missing: int = 0) -> float:
    """Median of the values and of `missing` infinite ones; NaN where it is infinite or empty."""
    listed = [*values, *[math.inf] * missing]
    if not listed:
        return NAN
    middle = sorted(listed)[(len(listed) - 1) // 2 : len(listed) // 2 + 1]
    value = sum(middle) / len(middle) if not any(map(math.isnan, listed)) else NAN
    return value if math.isfinite(value) else NAN


def level_figures(tasks: Sequence[AtLevel | None]) -> dict[str, float]:
    """Figures over tasks at one level, by the field of `AtLevel`; `reached` is a share.

    Damage and steps count a task that does not reach the level as infinite: with half of them
    missing, the median is not reached. The other figures are those of the tasks that reach it.
    """
    there = [task for task in tasks if task is not None]
    missing = len(tasks) - len(there)
    values = {"reached": len(there) / len(tasks) if tasks else NAN}
    for key in AtLevel._fields[1:]:
        listed = [float(getattr(task, key)) for task in there]
        values[key] = median(listed, missing if key in ("damage", "steps") else 0)
    return values


def not_reached(values: dict[str, Any]) -> bool:
    """Whether at least half of the tasks miss a level, so that its medians are infinite."""
    return values["reached"] <= 0.5 and math.isnan(values["damage"])


def single_figures(rows: list[Record], num_tasks: int, level: float) -> dict[str, Any]:
    """FIGURES at the arm's level; `by_level`, the medians at each level; `trajectories`, by task.

    Tasks without items of a side have no discrimination, and are left out.
    """
    levels = sorted({*LEVELS, level})
    trajectories = []
    at: dict[float, list[AtLevel | None]] = {one: [] for one in levels}
    for task in range(num_tasks):
        points = trajectory(rows, task)
        found = {}
        if points and not math.isnan(points[0].discrimination):
            found = {one: at_level(points, one) for one in levels}
        for one, reading in found.items():
            at[one].append(reading)
        trajectories.append(
            {
                "levels": {f"{one:g}": got and got.as_json() for one, got in found.items()},
                "far_levels": {f"{one:g}": finite(far_damage(points, one)) for one in found},
                "dnll": dnll_by_step(rows, task),
                "discrimination": {point.step: point.discrimination for point in points},
            }
        )
    by_level = {f"{one:g}": level_figures(at[one]) for one in levels}
    here = by_level[f"{level:g}"]
    figures = dict.fromkeys(FIGURES, NAN)
    figures |= {"reached": here["reached"], "damage": here["damage"]}
    figures["level_steps"] = here["steps"]
    for key in (*PARTS, "transfer", "stop_items"):
        figures[f"level_{key}"] = here[key]
    return {**figures, "by_level": by_level, "trajectories": trajectories}


def finite(value: float) -> float | None:
    """The value; None where it is infinite: the level is not reached."""
    return None if math.isinf(value) else value


def far_per_task(figures: Mapping[str, Any], level: float) -> np.ndarray:
    """Damage of each task [T] of an arm where far items alone reach a level; as `per_task`."""
    found = []
    for task in figures["trajectories"]:
        here = task.get("far_levels", {}).get(f"{level:g}", NAN)
        found.append(np.inf if here is None else here)
    return np.array(found)


def per_task(figures: Mapping[str, Any], level: float, key: str = "damage") -> np.ndarray:
    """A figure of each task [T] of an arm at a level.

    Infinite where the level is not reached, NaN for a task without items of a side.
    """
    found = []
    for task in figures["trajectories"]:
        here = task["levels"].get(f"{level:g}", {})
        found.append(np.inf if here is None else number(here, key))
    return np.array(found)

"""The placebo's share of the damage of an arm: damage that needs no contradiction.

A placebo learns the same stories with the true object in the world, for the steps of its arm.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsa_sandbox.metrics import single
from dsa_sandbox.metrics.damage import Crossing
from dsa_sandbox.metrics.figure import NAN
from dsa_sandbox.metrics.single import median


def per_task(arm: Mapping[str, Any], placebo: Mapping[str, Any], level: str) -> np.ndarray:
    """The placebo's dNLL of each task [T of both] where the arm reaches a level; NaN if unknown.

    Infinite where the arm does not reach it; NaN for a task without items of a side.
    """
    values = []
    for ours, theirs in zip(arm["trajectories"], placebo["trajectories"]):
        here = ours["levels"].get(level)
        if here is None:
            values.append(np.inf if ours["levels"] else NAN)
            continue
        place = here["place"]
        before, after = (theirs["dnll"].get(place[key], NAN) for key in ("from_step", "to_step"))
        values.append(
            Crossing(place["from_step"], place["to_step"], place["share"]).between(before, after)
        )
    return np.array(values)


def damage_there(arm: Mapping[str, Any], placebo: Mapping[str, Any], level: str) -> float:
    """Median over tasks of the placebo's dNLL where the arm reaches a level; NaN if unknown.

    Tasks without items of a side are left out.
    """
    there = per_task(arm, placebo, level)
    asked = [bool(task["levels"]) for task in arm["trajectories"]][: len(there)]
    return median(there[asked].tolist())


def damage_of_first(arm: Mapping[str, Any], level: float, count: int) -> float:
    """Median damage of the arm's first tasks, which are those of its placebo."""
    found = single.per_task(dict(arm), level)[:count]
    return median(found[~np.isnan(found)].tolist())


def share(part: float, whole: float) -> float:
    """The ratio of two damages; NaN where the second is not positive."""
    return part / whole if whole > 0 else NAN


def beside(arm: dict[str, Any], placebo: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's figures with those of its placebo."""
    if arm["experiment"] == "stream":
        return arm | {"placebo_share": share(placebo["drift"], arm["drift"])}
    by_level = {}
    for level, values in arm["by_level"].items():
        there = damage_there(arm, placebo, level)
        ours = damage_of_first(arm, float(level), len(placebo["trajectories"]))
        more = {"placebo_damage": there, "placebo_share": share(there, ours)}
        by_level[level] = values | more
    here = by_level[f"{arm['level']:g}"]
    more = {key: here[key] for key in ("placebo_damage", "placebo_share")}
    return arm | more | {"by_level": by_level}


def against(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results, with the placebo's share of each arm whose placebo is among them.

    The arm is a parent of its placebo, which took its steps from it. A placebo whose arm is among
    the results holds `placebo_of`, the arm's run.
    """
    found = dict(results)
    for name, one in results.items():
        if one["kind"] != "arm" or not one["placebo"]:
            continue
        for parent in one["parents"]:
            if parent in results and results[parent]["kind"] == "arm":
                found[parent] = beside(found[parent], one)
                found[name] = one | {"placebo_of": parent}
    return found

"""Figures of learning speed, and of the effect of earlier tasks on learning a new one.

The learning curve of a task is its discrimination at step 0 and at each later check (on stop items;
on validation items in single tasks); the last check's value holds from there to the cap of steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.metrics.forgetting import Record, mean, number

FIGURES = {
    "learning_auc": Figure(
        "learning AUC",
        "share",
        "mean over tasks of the area under the discrimination at checks over steps 0 to cap, / cap",
        "task",
    ),
    "fwt": Figure(
        "FWT",
        "ratio",
        "(A - A') / (1 - A'), A the learning AUC, A' that of `independent` on the same tasks",
    ),
    "intransigence": Figure(
        "intransigence",
        "share",
        "mean over tasks of a[j] - R[j,j], a[j] exact match of j learned by `independent`",
    ),
    "intransigence_joint": Figure(
        "intransigence joint",
        "share",
        "mean over tasks of a[j] - R[j,j], a[j] exact match of j after `joint`",
    ),
}


def curve(checks: list[Record], task: int) -> tuple[list[float], list[float]]:
    """Steps and discriminations of a task's learning curve."""
    steps = []
    values = []
    for line in checks:
        parts = line.get("stop") or line.get("validation")
        if line["task"] == task and parts:
            steps.append(float(line["step"]))
            values.append(number(parts, "discrimination"))
    return steps, values


def area(steps: list[float], values: list[float], cap: int) -> float:
    """Area under a curve from step 0 to the cap, linear between checks, / cap; in [0, 1]."""
    return float(np.trapezoid([*values, values[-1]], [*steps, float(cap)])) / cap


def learning_areas(checks: list[Record], num_tasks: int, cap: int) -> list[float]:
    """Area under the curve of each task; NaN where none is stored, or items of a part lack."""
    found = []
    for task in range(num_tasks):
        steps, values = curve(checks, task)
        found.append(area(steps, values, cap) if steps else NAN)
    return found


def learning_figures(areas: list[float], protocol: str = "sequential") -> dict[str, float]:
    """The figures of FIGURES that one arm defines; `against` adds those that need another arm.

    Tasks learned `together` have no learning curves of their own.
    """
    seen = [] if protocol == "joint" else [auc for auc in areas if not np.isnan(auc)]
    values = dict.fromkeys(FIGURES, NAN)
    values["learning_auc"] = mean(seen)
    return defined(values, FIGURES, protocol)


def forward_transfer(aucs: list[float], alone: list[float]) -> float:
    """(A - A') / (1 - A') of mean areas: the gain in learning a new task from earlier tasks.

    Continual World (Wolczyk et al. 2021, arXiv 2105.10919) averages this ratio over tasks; here
    the means come first, because the ratio has no value for a task that is learned at once.
    """
    pairs = np.array([pair for pair in zip(aucs, alone) if not np.isnan(pair).any()])
    if not len(pairs):
        return NAN
    ours, theirs = pairs.mean(axis=0)
    return float((ours - theirs) / (1 - theirs)) if theirs < 1 else NAN


def intransigence(exact: list[float], reference: list[float]) -> float:
    """Mean of a[j] - R[j,j]; may be negative.

    After Chaudhry et al. 2018 (arXiv 1801.10112, eq. 4), whose reference is trained on tasks 1 to j
    together; ours on task j alone, or on all of them.
    """
    gaps = [best - own for own, best in zip(exact, reference)]
    return mean(gap for gap in gaps if not np.isnan(gap))


def parts(strategy: str) -> frozenset[str]:
    """The strategies that a combined strategy consists of; `sgd` adds nothing to a combination."""
    return frozenset(strategy.split("+")) - {"sgd"}


def condition_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Settings in which two arms differ, and two bases of one architecture; empty for a fair pair.

    Settings of the indexer must agree only within an architecture: dense has no indexer. In a
    stream each arm has a learning rate of its own; of single tasks each strategy has one, which
    its architectures share.
    """
    ours, theirs = a.get("terms", {}), b.get("terms", {})
    same_arch = a.get("arch") == b.get("arch")
    own_rates = a.get("experiment") == "stream" or a.get("strategy") != b.get("strategy")
    found = []
    for key in ours:
        if not same_arch and key.startswith("finetune.indexer"):
            continue
        if own_rates and key == "finetune.learning_rate":
            continue
        if ours[key] != theirs.get(key):
            found.append(f"{key} is {ours[key]} and {theirs.get(key)}")
    if same_arch and a.get("base") != b.get("base"):
        found.append("they start from two bases")
    return found


def reference(
    name: str, results: Mapping[str, dict[str, Any]], protocol: str
) -> dict[str, Any] | None:
    """The bound of a protocol with the base, stream and settings of an arm, or None.

    Of several, the one with the largest part of the arm's strategy; None where two of these fit.
    """
    arm = results[name]
    fitting: dict[frozenset[str], list[dict[str, Any]]] = {}
    for other in results.values():
        same = all(other.get(key) == arm[key] for key in ("arch", "seed", "stream", "base"))
        if not same or other.get("protocol") != protocol or condition_differences(arm, other):
            continue
        shared = parts(other["strategy"]) - {protocol}
        if shared <= parts(arm["strategy"]):
            fitting.setdefault(shared, []).append(other)
    if not fitting:
        return None
    closest = fitting[max(fitting, key=len)]
    return closest[0] if len(closest) == 1 else None


def against(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results, with FWT and intransigence where the results hold the bounds that they need."""
    found = {}
    for name, arm in results.items():
        if arm.get("protocol") not in ("sequential", "none"):  # a bound, or not an arm
            found[name] = arm
            continue
        more = {}
        own = arm["by_task"]
        if alone := reference(name, results, "independent"):
            theirs = alone["by_task"]
            more["fwt"] = forward_transfer(own["learning_auc"], theirs["learning_auc"])
            more["intransigence"] = intransigence(
                own["exact_match_when_learned"], theirs["exact_match_when_learned"]
            )
        if joint := reference(name, results, "joint"):
            more["intransigence_joint"] = intransigence(
                own["exact_match_when_learned"], joint["by_task"]["exact_match_when_learned"]
            )
        found[name] = arm | more
    return found

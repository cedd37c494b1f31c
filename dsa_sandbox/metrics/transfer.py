"""Figures of learning speed, and of the effect of earlier tasks on learning a new one.

The learning curve of a task is the exact share of its clozes at step 0 (the base) and at each check
of the stop rule; the share of the last check holds from there to the cap of steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.metrics.forgetting import Record, mean

TAU = 0.8  # of a task's clozes: 4 of 5
FIGURES = {
    "learning_auc": Figure(
        "learning AUC",
        "share",
        "mean over tasks of the area under the exact share of clozes over steps 0 to cap, / cap",
        "task",
    ),
    "steps_to_tau": Figure(
        "steps to tau",
        "steps",
        f"mean over tasks of the first checked step with {TAU:.0%} of the clozes exact; "
        "the cap where there is none",
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


def curve(
    checks: list[Record], task: int, num_items: int, start: float
) -> tuple[list[float], list[float]]:
    """Steps and exact shares of a task's learning curve from step 0, where the share is `start`."""
    steps = [0.0]
    shares = [start]
    for line in checks:
        if line["task"] == task and "exact" in line:
            steps.append(float(line["step"]))
            shares.append(line["exact"] / num_items)
    return steps, shares


def area(steps: list[float], shares: list[float], cap: int) -> float:
    """Area under a curve from step 0 to the cap, linear between checks, / cap; in [0, 1]."""
    return float(np.trapezoid([*shares, shares[-1]], [*steps, float(cap)])) / cap


def steps_to_tau(steps: list[float], shares: list[float], cap: int) -> float:
    """The first checked step with a share of at least TAU, or the cap."""
    for step, share in zip(steps, shares):
        if step and share >= TAU - 1e-9:
            return step
    return float(cap)


def learning_curves(
    checks: list[Record], num_items: Mapping[int, int], starts: list[float], cap: int
) -> list[tuple[float, float]]:
    """Area and steps to tau of each task; NaN where no check of the stop rule is stored."""
    found = [(NAN, NAN)] * len(starts)
    for task, count in num_items.items():
        steps, shares = curve(checks, task, count, starts[task])
        if len(steps) > 1:
            found[task] = area(steps, shares, cap), steps_to_tau(steps, shares, cap)
    return found


def learning_figures(
    by_task: list[tuple[float, float]], protocol: str = "sequential"
) -> dict[str, float]:
    """The figures of FIGURES that one arm defines; `against` adds those that need another arm.

    Tasks learned `together` have no learning curves of their own.
    """
    seen = [] if protocol == "joint" else [pair for pair in by_task if not np.isnan(pair[0])]
    values = dict.fromkeys(FIGURES, NAN)
    values["learning_auc"] = mean(auc for auc, _ in seen)
    values["steps_to_tau"] = mean(steps for _, steps in seen)
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

    Settings of the indexer must agree only within an architecture: dense has no indexer.
    """
    ours, theirs = a.get("terms", {}), b.get("terms", {})
    same_arch = a.get("arch") == b.get("arch")
    found = []
    for key in ours:
        if not same_arch and key.startswith("finetune.indexer"):
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

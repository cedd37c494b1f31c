"""How fast an arm learns its tasks, and what it learns less than one without a past.

The curve of a task is the share of its clozes that are exact, at step 0 (the base), at each check
of the stop rule, and from the last check on, level, to the cap of steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsa_sandbox.metrics.forgetting import NAN, Formula, Record, mean, meant

TAU = 0.8  # of a task's clozes: 4 of 5
FORMULAS = {
    "learn_auc": Formula(
        "learn AUC",
        "mean over tasks of the area under the exact share of clozes over steps 0 to cap, / cap",
        "higher",
        "task",
    ),
    "steps_to_tau": Formula(
        "to tau",
        f"mean over tasks of the first checked step with {TAU:.0%} of the clozes exact; "
        "the cap where there is none",
        "lower",
        "task",
    ),
    "fwt": Formula(
        "FWT",
        "(A - A') / (1 - A'), A the mean learn AUC, A' that of `independent` on the same tasks",
        "higher",
    ),
    "intransigence": Formula(
        "intransig.",
        "mean over tasks of a[j] - R[j,j], a[j] exact match of j learned by `independent`",
        "lower",
    ),
    "intransigence_joint": Formula(
        "intr. joint",
        "mean over tasks of a[j] - R[j,j], a[j] exact match of j after `joint`",
        "lower",
    ),
}
BOUNDS = {"apart": "independent", "together": "joint"}


def curve(
    checks: list[Record], task: int, num_items: int, start: float
) -> tuple[list[float], list[float]]:
    """Steps and exact shares of a task's curve from step 0 on; `start` is the share there."""
    found = [line for line in checks if line["task"] == task and "exact" in line]
    steps = [0.0, *(float(line["step"]) for line in found)]
    return steps, [start, *(line["exact"] / num_items for line in found)]


def area(steps: list[float], shares: list[float], cap: int) -> float:
    """Area under a curve from step 0 to the cap, straight between checks, / cap; in [0, 1]."""
    return float(np.trapezoid([*shares, shares[-1]], [*steps, float(cap)])) / cap


def reached(steps: list[float], shares: list[float], cap: int) -> float:
    """The first step at which a share of TAU was seen, or the cap."""
    there = (step for step, share in zip(steps, shares) if step and share >= TAU - 1e-9)
    return next(there, float(cap))


def areas(
    checks: list[Record], num_items: Mapping[int, int], starts: list[float], cap: int
) -> list[tuple[float, float]]:
    """Area and steps to tau of each task; NaN where its learning was not looked at."""
    found = [(NAN, NAN)] * len(starts)
    for task, count in num_items.items():
        steps, shares = curve(checks, task, count, starts[task])
        if len(steps) > 1:
            found[task] = area(steps, shares, cap), reached(steps, shares, cap)
    return found


def figures(by_task: list[tuple[float, float]], course: str = "sequence") -> dict[str, float]:
    """The figures of FORMULAS without other arms; those that need one are NaN (`against`).

    Of tasks learned `together` no single one has a curve.
    """
    seen = [] if course == "together" else [pair for pair in by_task if not np.isnan(pair[0])]
    values = {
        "learn_auc": mean(auc for auc, _ in seen),
        "steps_to_tau": mean(steps for _, steps in seen),
    }
    return meant(dict.fromkeys(FORMULAS, NAN) | values, FORMULAS, course)


def forward_transfer(aucs: list[float], alone: list[float]) -> float:
    """(A - A') / (1 - A') of mean areas: what earlier tasks add to learning a new one.

    Continual World (Wolczyk et al. 2021, arXiv 2105.10919) averages this ratio over
    tasks; means are taken first here, since a task that is learned at once has no room to gain.
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
    """What a strategy is combined of; `sgd` adds nothing to anything."""
    return frozenset(strategy.split("+")) - {"sgd"}


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why two arms were not asked for the same: settings that differ, or bases of one architecture.

    Only arms of one architecture must agree in whether the indexer learns: dense has none.
    """
    ours, theirs = a.get("terms", {}), b.get("terms", {})
    same_arch = a.get("arch") == b.get("arch")
    keys = [k for k in ours if same_arch or not k.startswith("finetune.indexer")]
    found = [f"{k} is {ours[k]} and {theirs.get(k)}" for k in keys if ours[k] != theirs.get(k)]
    return found + (
        ["they stand on two bases"] if same_arch and a.get("base") != b.get("base") else []
    )


def reference(
    name: str, results: Mapping[str, dict[str, Any]], course: str
) -> dict[str, Any] | None:
    """The arm of a course that an arm is measured against: same base, stream and settings.

    Of several, the one whose mask is the arm's own; none where two fit alike.
    """
    arm = results[name]
    same = ("arch", "seed", "stream", "base")
    fitting: dict[frozenset[str], list[dict[str, Any]]] = {}
    for other in results.values():
        alike = all(other.get(key) == arm[key] for key in same)
        if other.get("course") == course and alike and not unlike(arm, other):
            mask = parts(other["strategy"]) - {BOUNDS[course]}
            if mask <= parts(arm["strategy"]):
                fitting.setdefault(mask, []).append(other)
    closest = max(fitting, key=len, default=None)
    found = fitting[closest] if closest is not None else []
    return found[0] if len(found) == 1 else None


def against(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results, with FWT and intransigence wherever the bounds they need are among them."""
    found = {}
    for name, arm in results.items():
        if arm.get("course") not in ("sequence", "nothing"):  # a bound, or no arm at all
            found[name] = arm
            continue
        more = {}
        own = arm["by_task"]
        if alone := reference(name, results, "apart"):
            theirs = alone["by_task"]
            more["fwt"] = forward_transfer(own["auc"], theirs["auc"])
            more["intransigence"] = intransigence(own["exact"], theirs["exact"])
        if joint := reference(name, results, "together"):
            more["intransigence_joint"] = intransigence(own["exact"], joint["by_task"]["exact"])
        found[name] = arm | more
    return found

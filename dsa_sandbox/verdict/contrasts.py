"""The planned contrasts between arms; no torch."""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.config.terms import SEEDS_NEEDED
from dsa_sandbox.metrics import single
from dsa_sandbox.metrics.transfer import parts
from dsa_sandbox.verdict.matching import (
    EXPERIMENTS,
    Matching,
    Reason,
    Results,
    Strategies,
    comparable,
    equal_learning,
)
from dsa_sandbox.verdict.values import of_tasks

# figures that contrasts subtract, by experiment
OUTCOMES: dict[str, tuple[str, ...]] = {"stream": ("drift", "lost"), "single": ("damage",)}
# the experiment that decides a claim
DECIDED_BY = {"H2": "stream", "H2c": "single", "H2a": "single", "H2b": "single", "H2e": "single"}
MASKS = ("random-mask", "complement", "attention-only", "bottom-frozen")  # rivals of acft's mask
PRACTICE = ("lora", "l2sp", "wise", "replay")  # methods used in practice

Named = tuple[str, str]  # architecture and strategy of an arm


class Contrast(NamedTuple):
    """A planned difference of two arms, or of two differences (H2c)."""

    claim: str
    title: str
    values: dict[str, float]  # first - second of each outcome; below zero, the first forgets less
    matching: Matching
    tasks: int  # that the difference is of

    def as_json(self) -> dict[str, Any]:
        """The contrast as plain values. One seed carries no test: every verdict is `undecided`."""
        return {
            "claim": self.claim,
            "experiment": DECIDED_BY[self.claim],
            "contrast": self.title,
            **self.values,
            "tasks": self.tasks,
            "equal_learning": self.matching.equal,
            "differs": self.matching.texts,
            "verdict": "undecided",
            "why": f"one seed; {SEEDS_NEEDED} are needed",
        }


class Difference(NamedTuple):
    """A signed sum of arms: its outcomes, and the number of tasks that all of them reach."""

    values: dict[str, float]
    tasks: int


def difference(signed: list[tuple[int, dict[str, Any]]]) -> Difference:
    """The signed sum of each outcome over arms of one experiment.

    Of a stream, it is that of the arms' figures. Of single tasks, the damage is subtracted task by
    task; the value is the median over the tasks that reach the level in all of the arms.
    """
    first, signs = signed[0][1], [sign for sign, _ in signed]
    if first["experiment"] == "stream":
        values = {}
        for key in OUTCOMES["stream"]:
            values[key] = of_tasks([np.array([arm[key]]) for _, arm in signed], signs).refuting
        return Difference(values, int(first["tasks"]))
    found = of_tasks([single.per_task(arm, arm["level"]) for _, arm in signed], signs)
    return Difference({"damage": found.refuting}, found.tasks)


def wanted(
    archs: list[str], rules: list[frozenset[str]]
) -> list[tuple[str, Strategies, Strategies]]:
    """Claim, first and second arm of every planned difference of two arms.

    H2: DSA with ACFT against what it is to replace. H2a: the architecture alone; with acft, against
    dense under the homologous mask. H2b: the mask alone, against none and against other masks.
    H2e: DSA with ACFT against methods used in practice.
    """
    acft = parts("acft")
    ours: Strategies = ("dsa", acft)
    found: list[tuple[str, Strategies, Strategies]] = []
    for name in ("ewc", "sgd"):
        found.append(("H2", ours, ("dense", parts(name))))
    for rule in rules:
        found.append(("H2a", ("dsa", rule), ("dense", rule)))
    for arch in archs:
        for masked in rules:
            if not acft <= masked:
                continue
            unmasked = masked - acft
            found.append(("H2b", (arch, masked), (arch, unmasked)))
            for mask in MASKS:
                found.append(("H2b", (arch, masked), (arch, unmasked | {mask})))
    for arch in archs:
        for name in PRACTICE:
            found.append(("H2e", ours, (arch, parts(name))))
    return found


def planned(arms: list[Named]) -> list[tuple[str, Named, Named]]:
    """Claim, first and second arm of the planned differences that the arms at hand allow."""
    at_hand = {(arch, parts(strategy)): (arch, strategy) for arch, strategy in arms}
    archs = list(dict.fromkeys(arch for arch, _ in at_hand))
    rules = list(dict.fromkeys(rule for _, rule in at_hand))
    found = []
    for claim, first, second in wanted(archs, rules):
        if first in at_hand and second in at_hand:
            found.append((claim, at_hand[first], at_hand[second]))
    return found


def interaction(arms: dict[Named, dict[str, Any]], control: str) -> Contrast:
    """H2c: [dsa acft - dsa sgd] - [control acft - control sgd], with all six pairs matched."""
    four = [("dsa", "acft"), ("dsa", "sgd"), (control, "acft"), (control, "sgd")]
    reasons = []
    for one, other in combinations(four, 2):
        names = " ".join(one), " ".join(other)
        for reason in equal_learning(arms[one], arms[other], names).reasons:
            text = reason.text
            if reason.topic != "reached":  # that text names its arm
                text = f"{text}, {names[0]} and {names[1]}"
            reasons.append(Reason(reason.topic, text, reason.difference))
    title = f"[dsa acft - dsa sgd] - [{control} acft - {control} sgd]"
    found = difference(list(zip((1, -1, -1, 1), (arms[name] for name in four))))
    return Contrast("H2c", title, found.values, Matching(not reasons, reasons), found.tasks)


def all_contrasts(results: Results) -> list[Contrast]:
    """The planned contrasts that the arms at hand allow, each of the experiment that decides it.

    Bounds and placebos take no part.
    """
    found = []
    for experiment in EXPERIMENTS:
        arms = comparable(results, experiment).arms
        for claim, a, b in planned(list(arms)):
            if DECIDED_BY[claim] != experiment:
                continue
            names = " ".join(a), " ".join(b)
            matching = equal_learning(arms[a], arms[b], names)
            values, tasks = difference([(1, arms[a]), (-1, arms[b])])
            found.append(Contrast(claim, f"{names[0]} - {names[1]}", values, matching, tasks))
        for control in ("dense", "dsa-full") if experiment == "single" else ():
            four = [("dsa", "acft"), ("dsa", "sgd"), (control, "acft"), (control, "sgd")]
            if all(arm in arms for arm in four):
                found.append(interaction(arms, control))
    return found

"""Contrasts between arms, and whether they may be compared; no torch."""

import math
from itertools import combinations
from typing import Any, NamedTuple

from dsa_sandbox.metrics import transfer
from dsa_sandbox.metrics.arm import FORMULAS
from dsa_sandbox.metrics.transfer import parts

SEEDS_NEEDED = {
    "H2c": 6,
    "H2": 8,
    "H2a": 8,
    "H2b": 8,
    "H2e": 8,
}  # below, no exact test has p < 0.05


MASKS = ("random-mask", "complement", "attention-only", "bottom-frozen")  # beside acft
PRACTICE = ("lora", "l2sp", "wise", "replay")  # what one would do without ACFT


Alike = tuple[str, frozenset[str]]  # architecture and what the strategy is combined of


class Matching(NamedTuple):
    """Whether two arms are at equal learning, and where they are not."""

    equal: bool
    reasons: list[str]


def equal_learning(
    a: dict[str, float], b: dict[str, float], names: tuple[str, str] = ("first", "second")
) -> Matching:
    """Same settings; both learn >= 90 % of the tasks, stop within 0.5 nats, generality and bleed
    right after each task within 0.1.

    A NaN counts as a difference.
    """
    reasons = transfer.unlike(a, b)
    for name, arm in zip(names, (a, b)):
        if not arm["learned"] >= 0.9:
            reasons.append(f"{name} learned {arm['learned']:.0%} of its tasks")
    for key, limit in (("stop_margin", 0.5), ("generality", 0.1), ("own_bleed", 0.1)):
        difference = abs(a[key] - b[key])
        title = FORMULAS[key].title
        if not math.isfinite(difference):
            reasons.append(f"{title} is not a number of both (limit of the difference: {limit})")
        elif difference > limit:
            reasons.append(f"{title} differs by {difference:.2f} (limit {limit})")
    return Matching(not reasons, reasons)


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """a - b in both outcomes, nats; below zero, a forgets less."""
    return {key: a[key] - b[key] for key in ("Y", "Y2")}


class Comparable(NamedTuple):
    """Arms that may be compared, by architecture and strategy, and why others may not."""

    arms: dict[tuple[str, str], dict[str, Any]]
    left_out: list[str]


def comparable(results: dict[str, dict[str, Any]]) -> Comparable:
    """Arms of one stream and seed, each the only one of its name."""
    found = [(name, arm) for name, arm in results.items() if arm["kind"] == "arm"]
    if len({(arm["stream"], arm["seed"]) for _, arm in found}) > 1:
        return Comparable({}, ["arms of several streams or seeds: none is compared to another"])
    named: dict[Alike, list[tuple[str, dict[str, Any]]]] = {}
    for name, arm in found:
        named.setdefault((arm["arch"], parts(arm["strategy"])), []).append((name, arm))
    left_out = [
        f"{len(several)} arms are {arch} {several[0][1]['strategy']}: no contrast uses them; name "
        f"the runs to compare ({', '.join(name for name, _ in several)})"
        for (arch, _), several in named.items()
        if len(several) > 1
    ]
    alone = [several[0][1] for several in named.values() if len(several) == 1]
    return Comparable({(arm["arch"], arm["strategy"]): arm for arm in alone}, left_out)


def planned(arms: list[tuple[str, str]]) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Claim, first and second arm of every difference that is planned and can be taken.

    H2: DSA with ACFT against what it is to replace. H2a: the architecture alone; with acft, against
    dense under the homologous mask. H2b: the mask alone, against none and against other masks.
    H2e: DSA with ACFT against what one would do in practice.
    """
    at_hand = {(arch, parts(strategy)): (arch, strategy) for arch, strategy in arms}
    archs, rules = (list(dict.fromkeys(column)) for column in zip(*at_hand))
    acft, ours = parts("acft"), ("dsa", parts("acft"))
    wanted: list[tuple[str, Alike, Alike]] = [
        ("H2", ours, ("dense", parts("ewc"))),
        ("H2", ours, ("dense", parts("sgd"))),
        *(("H2a", ("dsa", rule), ("dense", rule)) for rule in rules),
    ]
    for arch in archs:
        for masked in (rule for rule in rules if acft <= rule):
            others = [masked - acft, *(masked - acft | {mask} for mask in MASKS)]
            wanted += [("H2b", (arch, masked), (arch, other)) for other in others]
    wanted += [("H2e", ours, (arch, parts(name))) for arch in archs for name in PRACTICE]
    return [
        (claim, at_hand[first], at_hand[second])
        for claim, first, second in wanted
        if first in at_hand and second in at_hand
    ]


def all_contrasts(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The pre-registered contrasts that the arms at hand allow, and whether learning is matched.

    Bounds take no part. One seed carries no test: every verdict is `undecided`.
    """
    arms = {
        name: arm
        for name, arm in comparable(results).arms.items()
        if arm.get("course", "sequence") == "sequence"
    }
    found = []
    for claim, a, b in planned(list(arms)) if arms else ():
        match = equal_learning(arms[a], arms[b], (" ".join(a), " ".join(b)))
        title = f"{' '.join(a)} - {' '.join(b)}"
        found.append(entry(claim, title, difference(arms[a], arms[b]), match))
    for control in ("dense", "dsa-full"):
        four = [("dsa", "acft"), ("dsa", "sgd"), (control, "acft"), (control, "sgd")]
        if all(arm in arms for arm in four):
            inner, outer = (difference(arms[four[i]], arms[four[i + 1]]) for i in (0, 2))
            value = {key: inner[key] - outer[key] for key in inner}
            reasons = []
            for one, other in combinations(four, 2):
                pair = " ".join(one), " ".join(other)
                reasons += [
                    reason if " learned " in reason else f"{reason}, {pair[0]} and {pair[1]}"
                    for reason in equal_learning(arms[one], arms[other], pair).reasons
                ]
            match = Matching(not reasons, list(dict.fromkeys(reasons)))
            title = f"[dsa acft - dsa sgd] - [{control} acft - {control} sgd]"
            found.append(entry("H2c", title, value, match))
    return found


def entry(name: str, title: str, value: dict[str, float], match: Matching) -> dict[str, Any]:
    """One contrast as plain values."""
    return {
        "claim": name,
        "contrast": title,
        **value,
        "equal_learning": match.equal,
        "differs": match.reasons,
        "verdict": "undecided",
        "why": f"one seed; {SEEDS_NEEDED[name]} are needed",
    }

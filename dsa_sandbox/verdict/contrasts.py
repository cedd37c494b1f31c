"""The planned contrasts between arms; no torch."""

from itertools import combinations
from typing import Any, NamedTuple

from dsa_sandbox.metrics.transfer import parts
from dsa_sandbox.verdict.matching import (
    Matching,
    Reason,
    Results,
    Strategies,
    comparable,
    competes,
    equal_learning,
)

OUTCOMES = ("heldout_dnll", "log_odds_fall")  # figures that contrasts subtract, both in nats
# fewer seeds give no exact test with p < 0.05
SEEDS_NEEDED = {"H2c": 6, "H2": 8, "H2a": 8, "H2b": 8, "H2e": 8}
MASKS = ("random-mask", "complement", "attention-only", "bottom-frozen")  # rivals of acft's mask
PRACTICE = ("lora", "l2sp", "wise", "replay")  # methods used in practice

Named = tuple[str, str]  # architecture and strategy of an arm


class Contrast(NamedTuple):
    """A planned difference of two arms, or of two differences (H2c)."""

    claim: str
    title: str
    values: dict[str, float]  # first - second of each outcome; below zero, the first forgets less
    matching: Matching

    def as_json(self) -> dict[str, Any]:
        """The contrast as plain values. One seed carries no test: every verdict is `undecided`."""
        return {
            "claim": self.claim,
            "contrast": self.title,
            **self.values,
            "equal_learning": self.matching.equal,
            "differs": self.matching.texts,
            "verdict": "undecided",
            "why": f"one seed; {SEEDS_NEEDED[self.claim]} are needed",
        }


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """a - b of each outcome, nats; below zero, a forgets less."""
    return {key: a[key] - b[key] for key in OUTCOMES}


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
    ours = difference(arms[four[0]], arms[four[1]])
    theirs = difference(arms[four[2]], arms[four[3]])
    reasons = []
    for one, other in combinations(four, 2):
        names = " ".join(one), " ".join(other)
        for reason in equal_learning(arms[one], arms[other], names).reasons:
            text = reason.text
            if reason.topic != "learned":  # that text names its arm
                text = f"{text}, {names[0]} and {names[1]}"
            reasons.append(Reason(reason.topic, text, reason.difference))
    title = f"[dsa acft - dsa sgd] - [{control} acft - {control} sgd]"
    values = {key: ours[key] - theirs[key] for key in OUTCOMES}
    return Contrast("H2c", title, values, Matching(not reasons, reasons))


def all_contrasts(results: Results) -> list[Contrast]:
    """The planned contrasts that the arms at hand allow; bounds take no part."""
    arms = {}
    for name, figures in comparable(results).arms.items():
        if competes(figures):
            arms[name] = figures
    found = []
    for claim, a, b in planned(list(arms)):
        names = " ".join(a), " ".join(b)
        matching = equal_learning(arms[a], arms[b], names)
        title = f"{names[0]} - {names[1]}"
        found.append(Contrast(claim, title, difference(arms[a], arms[b]), matching))
    for control in ("dense", "dsa-full"):
        four = [("dsa", "acft"), ("dsa", "sgd"), (control, "acft"), (control, "sgd")]
        if all(arm in arms for arm in four):
            found.append(interaction(arms, control))
    return found

"""H1: sparse attention works at this size: bases as good as dense ones, that really select."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict import rules
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.claim import Claim, Word, shown_p
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Component, Estimate, Evidence, estimate
from dsa_sandbox.verdict.falsifier import Told
from dsa_sandbox.verdict.gates import nll_differences
from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.inference.equivalence import tost, tost_t

KNOWN = 0.8  # share of the facts
OVER_BIGRAM = 0.2  # share of minimal pairs
ARCHS = ("dense", "dsa")
Base = dict[str, Any]


def known(base: Base) -> float:
    """Share of the facts that the base knows."""
    return float(base["known_facts"] / base["asked_facts"]) if base["asked_facts"] else math.nan


def over_bigram(base: Base, kind: str) -> float:
    """Share of minimal pairs right, less that of a bigram."""
    return float(base["pairs"].get(kind, math.nan) - base["pairs_bigram"].get(kind, math.nan))


def over_chance_worlds(base: Base) -> float:
    """Hit rate of far world names among the selected keys, mean over layers, less chance."""
    found = base.get("far_worlds")
    return float(np.mean(found["by_layer"]) - found["chance"]) if found else math.nan


def over_chance_stated(base: Base) -> float:
    """Hit rate of stated facts among the selected keys, mean over layers and items, less chance."""
    rows = [row for row in base.get("recall", []) if row["hit"] is not None]
    if not rows:
        return math.nan
    return float(np.mean([row["hit"] - row["hit_chance"] for row in rows]))


# name, architecture, figure of a base, limit; the mean has to reach the limit
LIMITS: list[tuple[str, str, Callable[[Base], float], float]] = [
    *[(f"facts known, {arch}", arch, known, KNOWN) for arch in ARCHS],
    *[
        (
            f"{kind} pairs over a bigram, {arch}",
            arch,
            lambda base, k=kind: over_bigram(base, k),
            OVER_BIGRAM,
        )
        for kind in ("pronoun", "agreement")
        for arch in ARCHS
    ],
]
# name and figure of a dsa base; the mean has to be above 0, by a one-sided test
SELECTED: list[tuple[str, Callable[[Base], float]]] = [
    ("far world names among the selected keys, less chance", over_chance_worlds),
    ("stated facts among the selected keys, less chance", over_chance_stated),
]


def figures(blocks: Sequence[Block], arch: str, figure: Callable[[Base], float]) -> np.ndarray:
    """A figure of the bases of an architecture, over blocks; those without it are left out."""
    found = np.array([figure(dict(block.bases[arch])) for block in blocks if arch in block.bases])
    return found[~np.isnan(found)]


@claims.register("H1")
class H1(Claim):
    """Equal quality by two one-sided tests, knowledge by limits, selection against chance."""

    sentence = "Sparse attention works at this size: dsa equals dense, and really selects."
    family = "apart"
    outcomes = ()
    gating = ()
    bases = ARCHS

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return []

    def p(self, components: Sequence[Component]) -> float:
        """Unused: the tests of this claim are of bases."""
        return math.nan

    def parts(self, evidence: Evidence) -> list[dict[str, Any]]:
        """Every test with its estimate: whether it passes, or the contrary is shown."""
        margin = evidence.smallest("equal_bases")
        nll = nll_differences(evidence.blocks, "dsa", "dense")
        found = [part("held-out NLL, dsa - dense (nats)", nll, margin)]
        if len(nll):
            p = tost(nll.tolist(), margin)
            low, high = estimate(nll).interval
            found[0] |= {"p": p, "t_p": tost_t(nll.tolist(), margin), "passes": p <= rules.ALPHA}
            found[0] |= {"fails": low > margin or high < -margin}
        for name, arch, figure, limit in LIMITS:
            values = figures(evidence.blocks, arch, figure)
            one = part(name, values, limit)
            if len(values):
                one |= {"passes": one["mean"] >= limit, "fails": one["interval"][1] < limit}
            found.append(one)
        for name, figure in SELECTED:
            values = figures(evidence.blocks, "dsa", figure)
            one = part(name, values, 0.0)
            if len(values):
                p = float(sign_flip.p_greater(values))
                one |= {"p": p, "passes": p <= rules.ALPHA, "fails": one["interval"][1] < 0}
            found.append(one)
        return found

    def shown(self, evidence: Evidence, components: Sequence[Component]) -> list[dict[str, Any]]:
        return self.parts(evidence)

    def decide(
        self, evidence: Evidence, components: Sequence[Component], p: float, told: list[Told]
    ) -> tuple[Word, str]:
        parts = self.parts(evidence)
        failed = [one for one in parts if one["fails"]]
        if failed:
            return "refuted", "; ".join(in_words(one) for one in failed)
        still_open = [one for one in parts if not one["passes"]]
        if still_open:
            return "undecided", "not shown: " + "; ".join(in_words(one) for one in still_open)
        return "supported", f"{in_words(parts[0])}; all {len(parts)} tests pass"


def part(name: str, values: np.ndarray, limit: float) -> dict[str, Any]:
    """An estimate as plain values, not passed yet, and without the p-value of "the mean is 0"."""
    found: Estimate = estimate(values)
    about = {"name": name, "limit": limit, **found.as_json(), "p": math.nan}
    return {**about, "passes": False, "fails": False}


def in_words(one: dict[str, Any]) -> str:
    """A part in words."""
    if one["n"] == 0:
        return f"{one['name']}: not measured"
    low, high = one["interval"]
    p = f", p = {shown_p(one['p'])}" if one["name"].startswith("held-out") else ""
    return (
        f"{one['name']} {one['mean']:+.3f} ({low:+.3f} to {high:+.3f}), limit {one['limit']:g}{p}"
    )

"""What a claim is, and how the verdict on one whose components all have to hold is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict import gates, rules
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import UNITS, Component, Estimate, Evidence, component, estimate
from dsa_sandbox.verdict.falsifier import Told
from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.power import GOAL, MOST_BLOCKS, Group, least_seeds

Word = Literal["dominated", "not comparable", "supported", "refuted", "undecided", "exploratory"]
Family = Literal["primary", "secondary", "apart"]


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim with its reason, and the figures behind it."""

    claim: str
    sentence: str
    verdict: Word
    why: str
    seeds: list[int] = field(default_factory=list)  # with all cells of the claim
    components: list[dict[str, Any]] = field(default_factory=list)
    p: float | None = None  # of the whole claim, before any correction
    p_adjusted: float | None = None  # secondary claims, after Holm
    gates: list[Told] = field(default_factory=list)  # falsifiers that forbid support
    missing: list[str] = field(default_factory=list)  # cells that were not run
    resampled_error: float | None = None


class Claim:
    """A claim whose components all have to be below minus the smallest effect.

    A subclass gives the sentence and the comparisons; `needs` names the arms that a study of the
    claim has to run.
    """

    sentence: ClassVar[str] = ""
    outcomes: ClassVar[tuple[str, ...]] = ("damage",)
    family: ClassVar[Family] = "secondary"
    pairwise: ClassVar[bool] = True  # another arm can dominate the hypothesis' own
    gating: ClassVar[tuple[str, ...]] = ("near-items", "random-mask")
    bases: ClassVar[tuple[str, ...]] = ()  # further bases that it needs, by their names in a block

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        """The comparisons; `blocks` are those of the study."""
        raise NotImplementedError

    def needs(self) -> list[ArmKey]:
        """Arms that a study of this claim has to run, those of gating falsifiers included."""
        arms = dict.fromkeys(key for one in self.comparisons([]) for key in one.arms)
        for name in self.gating:
            arms |= dict.fromkeys(falsifiers[name]().needs(self.comparisons([])))
        return list(arms)

    def components(self, evidence: Evidence) -> list[Component]:
        """Every comparison in every outcome."""
        found = self.comparisons(evidence.blocks)
        return [component(evidence, one, outcome) for outcome in self.outcomes for one in found]

    def p(self, components: Sequence[Component]) -> float:
        """The largest two-sided p-value over the components."""
        return float(rules.largest_p([one.values.support for one in components]))

    def shown(self, evidence: Evidence, components: Sequence[Component]) -> list[dict[str, Any]]:
        """The components with their estimates, as plain values."""
        counts = {outcome: len(some) for outcome, some in by_outcome(components).items()}
        return [component_json(one, counts[one.outcome]) for one in components]

    def decide(
        self, evidence: Evidence, components: Sequence[Component], p: float, told: list[Told]
    ) -> tuple[Word, str]:
        """The verdict and its reason, in the order of the five verdicts.

        `p` is corrected already, where the claim is one of several.
        """
        excluded = barred(self, evidence, components)
        if excluded is not None:
            return excluded
        support = [one.values.support for one in components]
        smallest = components[0].smallest
        strong = bool(rules.supported(support, smallest, np.asarray(p)))
        against = self.against(components, told)
        if strong and against is None:
            return "supported", f"{figures_of(components)}; p = {shown_p(p)}"
        refuting = [one.values.refuting for one in components]
        if rules.refuted(refuting, smallest):
            return "refuted", why_refuted(components, rules.ALPHA / len(components))
        return "undecided", against if strong and against else why_undecided(components)

    def against(self, components: Sequence[Component], told: Sequence[Told]) -> str | None:
        """Why a falsifier forbids `supported`: it holds, or cannot be told; else None."""
        return first_against(told)

    def error(self, components: Sequence[Component]) -> float | None:
        """Share of resampled studies of a true effect of -smallest that would be refuted."""
        matrix = common(components)
        if matrix is None:
            return None
        smallest = components[0].smallest
        resampled = resamples(matrix)
        return float(rules.refuted([one - smallest for one in resampled], smallest).mean())


def component_json(one: Component, count: int) -> dict[str, Any]:
    """A component as plain values; its bounds are one-sided, at 1 - .05/k and 95 %.

    `refuting` is of the tasks that all arms reach, everything else of those that count for support.
    """
    found, other = estimate(one.values.support), estimate(one.values.refuting)
    refuting: dict[str, Any] = {"n": other.n, "mean": other.mean, "interval": [*other.interval]}
    level = 1 - rules.ALPHA / count
    if 0 < other.n <= sign_flip.LARGEST:
        refuting["bound"] = float(sign_flip.lower_bound(one.values.refuting, level))
        refuting["level"] = level
    return {
        "name": one.title,
        "outcome": one.outcome,
        "unit": UNITS[one.outcome],
        "smallest": one.smallest,
        **found.as_json(),
        "values": dict(zip(map(str, one.values.seeds), one.values.support.tolist())),
        "infinite": one.values.infinite,
        "left_out": one.values.left_out,
        "refuting": refuting,
        "log": None if one.logs is None else estimate(one.logs.support).as_json(),
    }


def first_against(told: Sequence[Told]) -> str | None:
    """The first gating falsifier that holds or cannot be told, in words."""
    for one in told:
        if one.holds:
            return f"the effect is there, but {one.sentence}: {one.line}"
        if one.holds is None:
            return f"the effect is there, but it cannot be told whether {one.sentence}: {one.line}"
    return None


def barred(
    claim: Claim, evidence: Evidence, components: Sequence[Component]
) -> tuple[Word, str] | None:
    """The verdict `dominated` or `not comparable`, where one is due."""
    found = list(dict.fromkeys(one.comparison for one in components))
    if claim.pairwise:
        for own in dict.fromkeys(one.own for one in found):
            others = [one.arms[1] for one in found if one.own == own]
            better = gates.dominating(evidence, own, others)
            if better is not None:
                return "dominated", better
    return incomparable(evidence, components)


def incomparable(evidence: Evidence, components: Sequence[Component]) -> tuple[Word, str] | None:
    """The verdict `not comparable`, where bases, worlds or missed tasks forbid a comparison."""
    archs = gates.archs_of(one.comparison for one in components)
    reasons = [gates.unequal_bases(evidence, archs), gates.closed_gates(evidence, archs)]
    reasons += [gates.too_many_missed(evidence, one) for one in components]
    told = list(dict.fromkeys(reason for reason in reasons if reason))
    return ("not comparable", "; ".join(told)) if told else None


RESAMPLES = 10_000


def common(components: Sequence[Component]) -> np.ndarray | None:
    """Values [k, n] of the seeds that all components have; None for fewer than two."""
    seeds = set.intersection(*(set(one.values.seeds) for one in components))
    rows = []
    for one in components:
        kept = [seed in seeds for seed in one.values.seeds]
        rows.append(one.values.support[kept])
    return np.stack(rows) if len(seeds) > 1 else None


def resamples(matrix_KN: np.ndarray, seed: int = 0) -> np.ndarray:
    """Centred blocks, drawn with replacement [k, RESAMPLES, n]; a seed is drawn as a whole."""
    n = matrix_KN.shape[1]
    places = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    return (matrix_KN - matrix_KN.mean(1, keepdims=True))[:, places]


def correlation(components: Sequence[Component]) -> float:
    """Mean correlation between components, between 0 and .95; 0 where it is not known."""
    matrix = common(components) if len(components) > 1 else None
    if matrix is None or not (matrix.std(1) > 0).all():
        return 0.0
    found = np.corrcoef(matrix)[np.triu_indices(len(matrix), 1)]
    return float(np.clip(found.mean(), 0.0, 0.95))


def pooled_sd(components: Sequence[Component]) -> float:
    """Root of the mean variance over components; NaN with fewer than two blocks in all."""
    known = [one.values.support for one in components if len(one.values.support) > 1]
    return float(np.sqrt(np.mean([one.var(ddof=1) for one in known]))) if known else float("nan")


def by_outcome(components: Sequence[Component]) -> dict[str, list[Component]]:
    """The components of each outcome."""
    found: dict[str, list[Component]] = {}
    for one in components:
        found.setdefault(one.outcome, []).append(one)
    return found


def why_undecided(components: Sequence[Component]) -> str:
    """The reason of `undecided`: figures, SD between seeds, and the seeds that refute a true 0."""
    groups = [
        Group(len(some), pooled_sd(some), some[0].smallest)
        for some in by_outcome(components).values()
    ]
    have = max(len(one.values.seeds) for one in components)
    told = " and ".join(f"{group.sd:.3f}" for group in groups)
    start = f"{figures_of(components)}: neither shown nor excluded; the SD between seeds is {told}"
    if have < 2 or not all(np.isfinite(group.sd) for group in groups):
        return f"too few seeds with a usable task: {have}"
    needed = least_seeds(groups, correlation(components), have)
    if needed is None:
        return f"{start}, too large for {MOST_BLOCKS} seeds"
    return f"{start}; {needed} seeds would refute a true 0 with power {GOAL:g}"


def why_refuted(components: Sequence[Component], alpha: float) -> str:
    """Which component's bound excludes the smallest effect."""
    for one in components:
        if rules.is_above(one.values.refuting, -one.smallest, alpha):
            found = estimate(one.values.refuting)
            small = found.p <= rules.ALPHA and found.mean < 0
            start = "smaller than matters: " if small else ""
            return (
                f"{start}{figure_of(one, found)}; an effect of {-one.smallest:+g} is excluded at "
                f"{1 - alpha:.1%}"
            )
    raise AssertionError("no component is refuted")


def figure_of(one: Component, found: Estimate) -> str:
    """A component's mean and interval in words."""
    unit = f" {UNITS[one.outcome]}" if UNITS[one.outcome] else ""
    low, high = found.interval
    return f"{one.title}: {found.mean:+.3f}{unit} ({low:+.3f} to {high:+.3f})"


def figures_of(components: Sequence[Component]) -> str:
    """The component whose mean is largest: the one that decides whether all hold."""
    known = [one for one in components if len(one.values.support)]
    if not known:
        return "no block has a usable task"
    worst = max(known, key=lambda one: float(one.values.support.mean()))
    most = "" if len(components) == 1 else "at worst "
    return most + figure_of(worst, estimate(worst.values.support))


def shown_p(p: float) -> str:
    """A p-value as text."""
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"

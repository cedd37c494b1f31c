"""H2: after many tasks, dsa with ACFT has lost less than dense with EWC and than dense with sgd."""

from collections.abc import Sequence

import numpy as np

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict import gates, rules
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.claim import (
    Claim,
    Word,
    barred,
    by_outcome,
    common,
    figures_of,
    resamples,
    shown_p,
    why_refuted,
    why_undecided,
)
from dsa_sandbox.verdict.comparison import Comparison, pair, stream
from dsa_sandbox.verdict.evidence import Component, Evidence
from dsa_sandbox.verdict.falsifier import Told
from dsa_sandbox.verdict.inference.holm import holm


@claims.register("H2")
class H2(Claim):
    """Two comparisons within each of two outcomes; one outcome suffices if the other is no harm."""

    sentence = "After many tasks, dsa with ACFT has lost less than dense with EWC and with sgd."
    outcomes = ("lost", "drift")
    family = "primary"

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        ours = stream("dsa", "acft")
        return [pair(ours, stream("dense", name)) for name in ("ewc", "sgd")]

    def p(self, components: Sequence[Component]) -> float:
        """The smaller of the outcomes' p-values after Holm."""
        return float(min(self.p_by_outcome(components).values()))

    def p_by_outcome(self, components: Sequence[Component]) -> dict[str, float]:
        """The larger p over the comparisons of each outcome, after Holm over the outcomes."""
        groups = by_outcome(components)
        found = [
            float(rules.largest_p([one.values.support for one in some])) for some in groups.values()
        ]
        return dict(zip(groups, holm(found).tolist()))

    def decide(
        self, evidence: Evidence, components: Sequence[Component], p: float, told: list[Told]
    ) -> tuple[Word, str]:
        excluded = barred(self, evidence, components)
        if excluded is not None:
            return excluded
        capped = {one.comparison: gates.capped_arms(evidence, one.comparison) for one in components}
        kept = [one for one in components if not capped[one.comparison]]
        reason = "; ".join(dict.fromkeys(text for text in capped.values() if text))
        if not kept:
            return "not comparable", reason
        groups, count = by_outcome(kept), len(capped)
        support = [[one.values.support for one in some] for some in groups.values()]
        smallest = [some[0].smallest for some in groups.values()]
        strong = not reason and bool(rules.supported_in_one(support, smallest))
        against = self.against(components, told)
        if strong and against is None:
            return "supported", self.why_supported(components)
        refuting = [[one.values.refuting for one in some] for some in groups.values()]
        if rules.refuted_in_both(refuting, smallest, count):
            return "refuted", self.why_refuted(groups, count)
        if reason:
            return "not comparable", reason
        return "undecided", against if strong and against else why_undecided(components)

    def why_supported(self, components: Sequence[Component]) -> str:
        """The outcomes that are supported; that the other shows no harm."""
        found = []
        p = self.p_by_outcome(components)
        for outcome, some in by_outcome(components).items():
            support = [one.values.support for one in some]
            if rules.supported(support, some[0].smallest, np.asarray(p[outcome])):
                found.append(f"{figures_of(some)}, p = {shown_p(p[outcome])}")
        other = "" if len(found) == len(p) else "; the other outcome shows no harm"
        return "; ".join(found) + other

    def why_refuted(self, groups: dict[str, list[Component]], count: int) -> str:
        """The outcome that shows harm, or the bounds of both."""
        for outcome, some in groups.items():
            harmed = [one for one in some if rules.harmed([one.values.refuting], one.smallest)]
            if harmed:
                return (
                    f"it does harm: {figures_of(harmed)}, more than {some[0].smallest:g} {outcome}"
                )
        alpha = rules.ALPHA / count
        return "; ".join(why_refuted(some, alpha) for some in groups.values())

    def error(self, components: Sequence[Component]) -> float | None:
        matrix = common(components)
        if matrix is None:
            return None
        resampled = resamples(matrix)
        groups: dict[str, list[int]] = {}
        for number, one in enumerate(components):
            groups.setdefault(one.outcome, []).append(number)
        smallest = [components[numbers[0]].smallest for numbers in groups.values()]
        shifted = [
            [resampled[number] - least for number in numbers]
            for numbers, least in zip(groups.values(), smallest)
        ]
        return float(rules.refuted_in_both(shifted, smallest).mean())

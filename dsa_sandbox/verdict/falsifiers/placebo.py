"""The placebo explains the gain."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict import values
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, any_missing, mean_of, single_tasks


@falsifiers.register("placebo")
class Placebo(Falsifier):
    """The contrast of damage less the placebo's: mean >= 0 where the whole contrast is below 0."""

    name = "placebo"
    sentence = "the gain is there without a contradiction: the placebo explains it"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        wanted = single_tasks(comparisons)
        measure = values.damage_without_placebo(evidence.terms.level)
        net = [mean_of(evidence, one, measure=measure) for one in wanted]
        whole = [mean_of(evidence, one) for one in wanted]
        lacking = any_missing(evidence, wanted)
        if lacking or not all(one.n for one in [*net, *whole]):
            return self.told(None, lacking or "no placebo of all arms")
        line = "; ".join(
            f"{one.title}: {all_.mean:+.3f} nats, {rest.mean:+.3f} less the placebo"
            for one, all_, rest in zip(wanted, whole, net)
        )
        explained = any(all_.mean < 0 <= rest.mean for all_, rest in zip(whole, net))
        return self.told(explained, line)

"""The gain is one of near items only."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict import values
from dsa_sandbox.verdict.blocks import ArmKey
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, any_missing, mean_of, single_tasks


@falsifiers.register("near-items")
class NearItems(Falsifier):
    """The claim's contrast on single tasks, with discrimination = min(far-in, out): mean >= 0."""

    name = "near-items"
    sentence = "the gain is one of near items only"

    def needs(self, comparisons: Sequence[Comparison]) -> list[ArmKey]:
        return [key for one in single_tasks(comparisons) for key in one.arms]

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        wanted = single_tasks(comparisons)
        measure = values.far_damage(evidence.terms.level)
        found = {one.title: mean_of(evidence, one, measure=measure) for one in wanted}
        lacking = any_missing(evidence, wanted)
        if lacking or not all(one.n for one in found.values()):
            return self.told(None, lacking or "no task has far items that reach the level")
        title, worst = max(found.items(), key=lambda entry: entry[1].mean)
        line = f"without near items, {title}: {worst} nats"
        return self.told(worst.mean >= 0, line)

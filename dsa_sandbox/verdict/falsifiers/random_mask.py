"""A random mask of the same size equals ACFT's mask."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.blocks import ArmKey
from dsa_sandbox.verdict.comparison import Comparison, pair, single
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, alike, mean_of

OURS, RANDOM = single("dsa", "acft"), single("dsa", "random-mask")


@falsifiers.register("random-mask")
class RandomMask(Falsifier):
    """The 90 % interval of dsa acft - dsa random-mask, median of draws, excludes a gain."""

    name = "random-mask"
    sentence = "a random mask does the same as the mask of ACFT"

    def needs(self, comparisons: Sequence[Comparison]) -> list[ArmKey]:
        return [OURS, RANDOM]

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        found = mean_of(evidence, pair(OURS, RANDOM))
        if not found.n:
            return self.told(None, f"no seed has {OURS.named} and {RANDOM.named}")
        if not found.has_interval:
            return self.told(None, f"dsa acft - dsa random-mask {found} nats")
        ends = f"{found.low_90:+.3f} to {found.high_90:+.3f} nats"
        line = f"dsa acft - dsa random-mask, 90 % interval {ends}"
        return self.told(alike(found, evidence.smallest("damage")), line)

"""The interaction's interval includes 0."""

from collections.abc import Sequence

from dsa_sandbox.registry import claims, falsifiers
from dsa_sandbox.verdict.blocks import ArmKey
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, any_missing, mean_of


@falsifiers.register("interaction")
class Interaction(Falsifier):
    """The 95 % interval of H2c's contrast, for each control."""

    name = "interaction"
    sentence = "the interval of the interaction of ACFT with dsa includes 0"

    def needs(self, comparisons: Sequence[Comparison]) -> list[ArmKey]:
        return [key for one in claims["H2c"]().comparisons([]) for key in one.arms]

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        wanted = claims["H2c"]().comparisons(evidence.blocks)
        lacking = any_missing(evidence, wanted)
        found = {one.signed[2][1].arch: mean_of(evidence, one) for one in wanted}
        if lacking or not all(one.n for one in found.values()):
            return self.told(None, lacking or "no block has a usable task")
        line = "; ".join(f"against {arch} {one} nats" for arch, one in found.items())
        if not all(one.has_interval for one in found.values()):
            return self.told(None, line)
        return self.told(any(one.low <= 0 <= one.high for one in found.values()), line)

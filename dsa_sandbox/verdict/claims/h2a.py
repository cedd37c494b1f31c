"""H2a: the architecture alone, within each rule."""

from collections.abc import Sequence

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.claim import Claim
from dsa_sandbox.verdict.comparison import Comparison, pair, single

RULES = ("sgd", "ewc", "acft")


@claims.register("H2a")
class H2a(Claim):
    """dsa against dense under the same rule; no mask is claimed to matter."""

    sentence = "dsa is damaged less than dense under each rule: sgd, ewc and acft."
    gating = ("near-items",)

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return [pair(single("dsa", rule), single("dense", rule)) for rule in RULES]

"""H2b: the mask alone, within each architecture."""

from collections.abc import Sequence

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.claim import Claim
from dsa_sandbox.verdict.comparison import Comparison, pair, single

ARCHS = ("dense", "dsa", "dsa-full")


@claims.register("H2b")
class H2b(Claim):
    """ACFT against sgd in the same architecture."""

    sentence = "ACFT does less damage than sgd in each architecture: dense, dsa and dsa-full."

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return [pair(single(arch, "acft"), single(arch, "sgd")) for arch in ARCHS]

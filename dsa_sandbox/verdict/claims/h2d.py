"""H2d: the gain of ACFT in dsa needs learned selection."""

from collections.abc import Sequence

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.blocks import Block, base_name, variant_of
from dsa_sandbox.verdict.claim import Claim
from dsa_sandbox.verdict.comparison import Comparison, interaction, single

POLICIES = ("random", "window")


def selected_by(policy: str) -> str:
    """The variant of arms and bases that were pre-trained with a policy of selection."""
    return variant_of({"train.selection": policy})


@claims.register("H2d")
class H2d(Claim):
    """A difference of differences against a base of its own for each policy."""

    sentence = "What ACFT saves in dsa needs learned selection: random and window save less."
    pairwise = False
    bases = tuple(base_name("dsa", selected_by(policy)) for policy in POLICIES)

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return [
            interaction(
                single("dsa", "acft"),
                single("dsa", "sgd"),
                single("dsa", "acft", selected_by(policy)),
                single("dsa", "sgd", selected_by(policy)),
            )
            for policy in POLICIES
        ]

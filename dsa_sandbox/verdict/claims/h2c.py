"""H2c: ACFT saves more damage in dsa than in dsa-full and than in dense: the mechanism."""

from collections.abc import Sequence

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.claim import Claim, first_against
from dsa_sandbox.verdict.comparison import Comparison, interaction, single
from dsa_sandbox.verdict.evidence import Component
from dsa_sandbox.verdict.falsifier import Told

CONTROLS = ("dsa-full", "dense")


@claims.register("H2c")
class H2c(Claim):
    """A difference of differences for each control; the ratio of damages has to agree."""

    sentence = "ACFT saves more damage in dsa than in dsa-full and than in dense."
    family = "primary"
    pairwise = False

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return [
            interaction(
                single("dsa", "acft"),
                single("dsa", "sgd"),
                single(control, "acft"),
                single(control, "sgd"),
            )
            for control in CONTROLS
        ]

    def against(self, components: Sequence[Component], told: Sequence[Told]) -> str | None:
        for one in components:
            if one.logs is not None and not one.logs.support.mean() < 0:
                return (
                    "in nats, not in ratio: the mean of log damage is "
                    f"{one.logs.support.mean():+.3f} for {one.comparison.title}"
                )
        return first_against(told)

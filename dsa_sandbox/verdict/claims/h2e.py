"""H2e: dsa with ACFT is not worse than methods used in practice."""

from collections.abc import Sequence

import numpy as np

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict import rules
from dsa_sandbox.verdict.blocks import ArmKey, Block, variant_of
from dsa_sandbox.verdict.claim import (
    Claim,
    Word,
    barred,
    common,
    figures_of,
    pooled_sd,
    resamples,
    shown_p,
)
from dsa_sandbox.verdict.comparison import Comparison, pair, single, variants
from dsa_sandbox.verdict.evidence import Component, Evidence
from dsa_sandbox.verdict.falsifier import Told
from dsa_sandbox.verdict.inference import sign_flip

ARCHS = ("dense", "dsa")
METHODS = ("lora", "l2sp", "wise")
ANSWER = variant_of({"finetune.loss": "answer"})
RATE = "finetune.learning_rate"


def rivals(blocks: Sequence[Block]) -> list[ArmKey]:
    """The methods, each on both architectures; replay and lower rates as they were run.

    Where none was run, the arm that is missing.
    """
    found = []
    for arch in ARCHS:
        found += [single(arch, name) for name in METHODS]
        found.append(single(arch, "sgd", ANSWER))
        replay, plain = single(arch, "replay"), single(arch, "sgd")
        shares = [single(arch, "replay", one) for one in variants(blocks, replay, "replay.")]
        stands = not shares or any(replay in block.arms for block in blocks)
        found += [replay, *shares] if stands else shares
        found += lower_rates(blocks, plain) or [plain._replace(variant=RATE)]
    return found


def lower_rates(blocks: Sequence[Block], plain: ArmKey) -> list[ArmKey]:
    """Variants of an arm with a lower learning rate than its own."""
    found = [plain._replace(variant=one) for one in variants(blocks, plain, RATE)]
    return [key for key in found if any(is_lower(block, key, plain) for block in blocks)]


def is_lower(block: Block, key: ArmKey, plain: ArmKey) -> bool:
    """Whether an arm of a block has a lower learning rate than another."""
    if key not in block.arms or plain not in block.arms:
        return False
    rates = [block.arms[one].get("terms", {}).get(RATE) for one in (key, plain)]
    return None not in rates and rates[0] < rates[1]


@claims.register("H2e")
class H2e(Claim):
    """Non-inferiority: every difference is below the smallest effect."""

    sentence = (
        "In practice, dsa with ACFT is not worse than LoRA, L2-SP, WiSE-FT, replay, a lower rate, "
        "or a loss on answers alone, on dense or on dsa."
    )
    gating = ()

    def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
        return [pair(single("dsa", "acft"), rival) for rival in rivals(blocks)]

    def p(self, components: Sequence[Component]) -> float:
        """The largest one-sided p-value of "worse by the smallest effect or more"."""
        found = [
            float(sign_flip.p_less(one.values.support, one.smallest))
            for one in components
            if len(one.values.support)
        ]
        return max(found) if len(found) == len(components) else 1.0

    def decide(
        self, evidence: Evidence, components: Sequence[Component], p: float, told: list[Told]
    ) -> tuple[Word, str]:
        excluded = barred(self, evidence, components)
        if excluded is not None:
            return excluded
        margin = components[0].smallest
        if p <= rules.ALPHA:
            return "supported", (
                f"{figures_of(components)}; worse by {margin:g} is excluded, p = {shown_p(p)}"
            )
        alpha = rules.ALPHA / len(components)
        worse = [one for one in components if rules.is_above(one.values.refuting, margin, alpha)]
        if worse:
            return "refuted", f"{figures_of(worse)}; that is worse by more than {margin:g}"
        return "undecided", (
            f"{figures_of(components)}; worse by {margin:g} is neither shown nor excluded, with an "
            f"SD between seeds of {pooled_sd(components):.3f}"
        )

    def error(self, components: Sequence[Component]) -> float | None:
        """Share of resampled studies with a true difference of the margin that are refuted."""
        matrix = common(components)
        if matrix is None:
            return None
        margin, alpha = components[0].smallest, rules.ALPHA / len(components)
        above = [rules.is_above(one + margin, margin, alpha) for one in resamples(matrix)]
        return float(np.any(above, axis=0).mean())

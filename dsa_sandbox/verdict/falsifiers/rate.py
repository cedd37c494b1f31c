"""The sign of the interaction changes with the learning rate."""

from collections.abc import Sequence
from itertools import product

from dsa_sandbox.registry import claims, falsifiers
from dsa_sandbox.verdict.blocks import ArmKey
from dsa_sandbox.verdict.claims.h2e import RATE
from dsa_sandbox.verdict.comparison import Comparison, variants
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, mean_of


@falsifiers.register("rate")
class Rate(Falsifier):
    """H2c's contrast over all rates of its two rules that were run on all architectures."""

    name = "rate"
    sentence = "the sign of the interaction changes with the learning rate"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        negative: list[float] = []
        positive: list[float] = []
        for one in claims["H2c"]().comparisons(evidence.blocks):
            for rates in product(*(self.shared(evidence, one, rule) for rule in ("acft", "sgd"))):
                chosen = dict(zip(("acft", "sgd"), rates))
                signed = tuple(
                    (sign, key._replace(variant=chosen[key.strategy])) for sign, key in one.signed
                )
                found = mean_of(evidence, Comparison(one.title, signed))
                if found.n:
                    (negative if found.mean < 0 else positive).append(found.mean)
        count = len(negative) + len(positive)
        if count <= 2:  # the study's own rates, for the two controls
            return self.told(None, "no other rate was run for all arms of the interaction")
        low, high = min(negative + positive), max(negative + positive)
        line = f"{len(negative)} of {count} below 0, from {low:+.3f} to {high:+.3f} nats"
        return self.told(bool(negative and positive), line)

    def shared(self, evidence: Evidence, one: Comparison, rule: str) -> list[str]:
        """Variants of the rule's rate that its arms share, its own first."""
        arms: list[ArmKey] = [key for key in one.arms if key.strategy == rule]
        found = [set(variants(evidence.blocks, key, RATE)) for key in arms]
        return ["", *sorted(set.intersection(*found))]

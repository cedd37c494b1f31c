"""A lower rate, WiSE-FT or a loss on answers alone gives the same."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.claims.h2e import ANSWER, lower_rates
from dsa_sandbox.verdict.comparison import Comparison, pair, single
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, alike, mean_of


@falsifiers.register("practice")
class Practice(Falsifier):
    """dsa with ACFT against simple remedies on either architecture."""

    name = "practice"
    sentence = "a lower rate, WiSE-FT or a loss on answers alone does the same as dsa with ACFT"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        ours = single("dsa", "acft")
        remedies = []
        for arch in ("dense", "dsa"):
            remedies += [single(arch, "wise"), single(arch, "sgd", ANSWER)]
            remedies += lower_rates(evidence.blocks, single(arch, "sgd"))
        found = {key.named: mean_of(evidence, pair(ours, key)) for key in remedies}
        known = {name: one for name, one in found.items() if one.has_interval}
        same = {name: one for name, one in known.items() if alike(one, evidence.smallest("damage"))}
        shown = same or known
        line = "; ".join(f"dsa acft - {name} {one} nats" for name, one in shown.items())
        if same:
            return self.told(True, line)
        every = len(known) == len(found) and len(found) >= 6  # a lower rate on both, too
        return self.told(False if every else None, line or "no such arm was run")

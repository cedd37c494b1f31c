"""Random or window selection equals learned selection."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.claims.h2d import POLICIES, selected_by
from dsa_sandbox.verdict.comparison import Comparison, pair, single
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, alike, mean_of


@falsifiers.register("selection")
class Selection(Falsifier):
    """dsa with ACFT against the same arm on a base with random or window selection."""

    name = "selection"
    sentence = "random or window selection does the same as learned selection"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        ours = single("dsa", "acft")
        found = {
            policy: mean_of(evidence, pair(ours, single("dsa", "acft", selected_by(policy))))
            for policy in POLICIES
        }
        known = {policy: one for policy, one in found.items() if one.has_interval}
        line = "; ".join(f"learned - {policy} {one} nats" for policy, one in known.items())
        same = any(alike(one, evidence.smallest("damage")) for one in known.values())
        if len(known) < len(found) and not same:
            return self.told(None, line or "no arm with random or window selection")
        return self.told(same, line)

"""Selection is worth nothing in these bases."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.blocks import base_name
from dsa_sandbox.verdict.claims.h2d import POLICIES, selected_by
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told
from dsa_sandbox.verdict.gates import nll_differences


@falsifiers.register("worth")
class Worth(Falsifier):
    """A base with random or window selection is no worse than one with learned selection."""

    name = "worth"
    sentence = "selection is worth nothing in these bases"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        margin = evidence.smallest("equal_bases")
        found = {
            policy: nll_differences(
                evidence.blocks, base_name("dsa", selected_by(policy)), base_name("dsa")
            )
            for policy in POLICIES
        }
        known = {policy: float(one.mean()) for policy, one in found.items() if len(one)}
        seeds = max((len(one) for one in found.values()), default=0)
        line = "; ".join(f"{policy} - learned {one:+.4f} nats" for policy, one in known.items())
        worthless = any(one < margin for one in known.values())
        if len(known) < len(found) and not worthless:
            return self.told(None, line or "no base with random or window selection")
        return self.told(worthless, f"{line} of held-out NLL (seeds: {seeds})")

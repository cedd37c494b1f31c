"""The bases differ."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told
from dsa_sandbox.verdict.gates import nll_differences
from dsa_sandbox.verdict.inference.equivalence import tost
from dsa_sandbox.verdict.rules import ALPHA


@falsifiers.register("bases")
class Bases(Falsifier):
    """Held-out NLL of dsa against dense and dsa-full: not shown to be within the margin."""

    name = "bases"
    sentence = "the bases differ in held-out NLL, or are not shown to be equal"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        margin = evidence.smallest("equal_bases")
        lines, differ = [], False
        for other in ("dense", "dsa-full"):
            found = nll_differences(evidence.blocks, "dsa", other)
            if len(found):
                p = tost(found.tolist(), margin)
                differ |= p > ALPHA
                lines.append(
                    f"dsa - {other} {found.mean():+.4f} nats, within {margin:g}: p = {p:.3f}"
                )
        return self.told(differ if lines else None, "; ".join(lines) or "no two bases")

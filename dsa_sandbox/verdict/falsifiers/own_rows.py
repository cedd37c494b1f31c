"""Own rows differ: the arms of streams had not learned equally."""

from collections.abc import Sequence

from dsa_sandbox.metrics.stream import UNEQUAL
from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, largest, mean_of


@falsifiers.register("own-rows")
class OwnRows(Falsifier):
    """Discrimination right after each task: a difference of two arms beyond UNEQUAL on average."""

    name = "own-rows"
    sentence = "the arms of streams differ in what they had learned right after each task"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        pairs = [one.in_experiment("stream") for one in comparisons if len(one.signed) == 2]
        found = {one.title: mean_of(evidence, one, "own_discrimination") for one in pairs}
        known = {title: one for title, one in found.items() if one.n}
        if not known:
            return self.told(None, "no two arms of streams")
        line = "; ".join(f"{title} {one.mean:+.3f}" for title, one in known.items())
        lowest = -min(one.mean for one in known.values())
        return self.told(max(lowest, largest(list(known.values()))) > UNEQUAL, line)

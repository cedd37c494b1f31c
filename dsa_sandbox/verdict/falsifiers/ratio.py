"""The gain is one in nats only, or in ratio only."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, any_missing, mean_of, single_tasks


@falsifiers.register("ratio")
class Ratio(Falsifier):
    """The signs of a contrast of damage and of the same contrast of log damage."""

    name = "ratio"
    sentence = "the gain is there in nats only, or in ratio only"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        wanted = single_tasks(comparisons)
        lacking = any_missing(evidence, wanted)
        both = [(mean_of(evidence, one), mean_of(evidence, one, logs=True)) for one in wanted]
        if lacking or not all(nats.n for nats, _ in both):
            return self.told(None, lacking or "no block has a usable task")
        lines = [
            f"{one.title}: {nats.mean:+.3f} nats, factor {2.718281828**logs.mean:.2f}"
            for one, (nats, logs) in zip(wanted, both)
        ]
        return self.told(any((a.mean < 0) != (b.mean < 0) for a, b in both), "; ".join(lines))

"""The order of the tasks flips the ranking."""

from collections.abc import Sequence

from dsa_sandbox.registry import falsifiers
from dsa_sandbox.verdict.comparison import Comparison, variants
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Falsifier, Told, mean_of

ORDER = "tasks.order"


@falsifiers.register("order")
class Order(Falsifier):
    """The sign of a contrast of streams under another order of the tasks."""

    name = "order"
    sentence = "another order of the tasks flips the ranking"

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        flipped: list[str] = []
        kept: list[str] = []
        for one in comparisons:
            plain = one.in_experiment("stream")
            shared = [set(variants(evidence.blocks, key, ORDER)) for key in plain.arms]
            for variant in sorted(set.intersection(*shared)):
                signed = tuple((sign, key._replace(variant=variant)) for sign, key in plain.signed)
                for outcome in ("lost", "drift"):
                    before = mean_of(evidence, plain, outcome)
                    after = mean_of(evidence, Comparison(plain.title, signed), outcome)
                    if not (before.n and after.n):
                        continue
                    means = f"{before.mean:+.3f}, {after.mean:+.3f} ({variant})"
                    line = f"{outcome} of {plain.title}: {means}"
                    (flipped if before.mean * after.mean < 0 else kept).append(line)
        if not (flipped or kept):
            return self.told(None, "no stream was run in another order")
        return self.told(bool(flipped), "; ".join(flipped or kept))

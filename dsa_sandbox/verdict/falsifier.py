"""What a falsifier is: a finding that would take the ground from under a claim."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dsa_sandbox.verdict.blocks import ArmKey
from dsa_sandbox.verdict.comparison import Comparison, draws
from dsa_sandbox.verdict.evidence import Evidence, component
from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.values import Measure


class Told(NamedTuple):
    """Whether a falsifier holds (None: it cannot be told), with one line of figures."""

    name: str
    sentence: str
    holds: bool | None
    line: str

    @property
    def word(self) -> str:
        """holds, does not hold, or cannot be told."""
        if self.holds is None:
            return "cannot be told"
        return "holds" if self.holds else "does not hold"

    def as_json(self) -> dict[str, Any]:
        """The falsifier as plain values."""
        return {"name": self.name, "sentence": self.sentence, "holds": self.word, "line": self.line}


class Falsifier:
    """A named objection. `sentence` says what is the case where it holds."""

    name: ClassVar[str] = ""
    sentence: ClassVar[str] = ""

    def needs(self, comparisons: Sequence[Comparison]) -> list[ArmKey]:
        """Arms that it cannot do without, for a claim with these comparisons."""
        return []

    def tell(self, evidence: Evidence, comparisons: Sequence[Comparison]) -> Told:
        """Whether it holds for a claim with these comparisons."""
        raise NotImplementedError

    def told(self, holds: bool | None, line: str) -> Told:
        """The answer under the falsifier's name."""
        return Told(self.name, self.sentence, holds, line)


class Mean(NamedTuple):
    """Mean of a comparison over blocks with its intervals; n 0 where the cells are missing."""

    n: int
    mean: float
    low: float  # 95 %
    high: float
    low_90: float
    high_90: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def mean_of(
    evidence: Evidence,
    comparison: Comparison,
    outcome: str = "damage",
    measure: Measure | None = None,
    *,
    logs: bool = False,
) -> Mean:
    """The mean of a comparison over the blocks that have all its arms."""
    has = [all(draws(block, key) for key in comparison.arms) for block in evidence.blocks]
    kept = [block for block, here in zip(evidence.blocks, has) if here]
    found = component(evidence._replace(blocks=kept), comparison, outcome, measure)
    chosen = found.logs if logs and found.logs else found.values
    if len(chosen.support) == 0:
        return Mean(0, *[float("nan")] * 5)
    ends = [sign_flip.interval(chosen.support, level) for level in (0.95, 0.9)]
    return Mean(
        len(chosen.support),
        float(chosen.support.mean()),
        *(float(end) for both in ends for end in both),
    )


def alike(found: Mean, smallest: float) -> bool:
    """Whether the other arm does as well: the 90 % interval excludes a gain of `smallest`.

    An interval within the margin is equivalence; one above it is an other arm that does better.
    """
    return found.low_90 > -smallest


def single_tasks(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with the arms of single tasks in place of those of streams."""
    return list(dict.fromkeys(one.in_experiment("single") for one in comparisons))


def any_missing(evidence: Evidence, comparisons: Sequence[Comparison]) -> str | None:
    """Arms that no block has, in words."""
    keys = dict.fromkeys(key for one in comparisons for key in one.arms)
    lacking = [key.named for key in keys if not any(draws(block, key) for block in evidence.blocks)]
    return f"not run: {', '.join(lacking)}" if lacking else None


def largest(found: Sequence[Mean]) -> float:
    """The largest mean; NaN without one."""
    return float(np.max([one.mean for one in found])) if found else float("nan")

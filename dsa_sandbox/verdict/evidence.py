"""What a verdict is given from: blocks and terms, and the estimates of a claim's components."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.config.terms import Terms
from dsa_sandbox.verdict import values
from dsa_sandbox.verdict.blocks import Block
from dsa_sandbox.verdict.comparison import Comparison
from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.inference.t_test import t_test
from dsa_sandbox.verdict.inference.wilcoxon import wilcoxon
from dsa_sandbox.verdict.values import BlockValue, Measure, Values

OUTCOMES = ("damage", "drift", "lost")  # that verdicts rest on
UNITS = {"damage": "nats", "drift": "nats", "lost": ""}
LOG_OF_TWO = float(np.log(2))


class Evidence(NamedTuple):
    """The blocks that count, and the terms fixed before them."""

    blocks: list[Block]
    terms: Terms

    def smallest(self, outcome: str) -> float:
        """The smallest effect of interest of an outcome."""
        return float(getattr(self.terms.smallest, outcome))


class Component(NamedTuple):
    """One comparison in one outcome, over blocks."""

    comparison: Comparison
    outcome: str
    smallest: float
    blocks: list[BlockValue]
    values: Values
    logs: Values | None = None  # of log damage; single tasks only

    @property
    def title(self) -> str:
        """The outcome and the arms."""
        return f"{self.outcome}, {self.comparison.title}"


def component(
    evidence: Evidence, comparison: Comparison, outcome: str, measure: Measure | None = None
) -> Component:
    """The values of a comparison over the blocks of the evidence.

    `measure` takes the place of damage; the comparison has then no log scale.
    """
    blocks = evidence.blocks
    if outcome not in OUTCOMES:  # a figure of streams that no verdict rests on
        found = [values.in_stream(block, comparison, outcome) for block in blocks]
        return Component(comparison, outcome, 0.0, found, values.values_of(blocks, found, 0.0))
    smallest = evidence.smallest(outcome)
    if outcome != "damage":
        found = [values.in_stream(block, comparison, outcome) for block in blocks]
        entered = values.values_of(blocks, found, 2 * smallest)
        return Component(comparison, outcome, smallest, found, entered)
    level = evidence.terms.level
    nats = measure or values.damage(level)
    found = [values.in_single_tasks(block, comparison, nats) for block in blocks]
    entered = values.values_of(blocks, found, 2 * smallest)
    if measure is not None:
        return Component(comparison, outcome, smallest, found, entered)
    ratios = values.log_damage(level)
    logs = [values.in_single_tasks(block, comparison, ratios) for block in blocks]
    return Component(
        comparison, outcome, smallest, found, entered, values.values_of(blocks, logs, LOG_OF_TWO)
    )


class Estimate(NamedTuple):
    """Mean over blocks with its uncertainty; NaN without a block.

    Interval and p are those of the exact sign-flip test: unbounded where n is too small for the
    level, NaN where it is too large to enumerate.
    """

    n: int
    mean: float
    sd: float
    median: float
    interval: tuple[float, float]  # 95 %
    interval_90: tuple[float, float]
    p: float
    t_interval: tuple[float, float]
    t_p: float
    wilcoxon_p: float

    def as_json(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return {key: listed(value) for key, value in self._asdict().items()}


def listed(value: Any) -> Any:
    """A tuple as a list, for JSON."""
    return list(value) if isinstance(value, tuple) else value


def estimate(sample: Sequence[float] | np.ndarray) -> Estimate:
    """Mean, SD (n - 1), median, intervals and p-values of "the mean is 0" of a sample."""
    found = np.asarray(sample, float)
    n = len(found)
    nan, unknown = float("nan"), (float("nan"), float("nan"))
    if n == 0:
        return Estimate(0, nan, nan, nan, unknown, unknown, nan, unknown, nan, nan)
    t = t_test(found.tolist())
    exact = n <= sign_flip.LARGEST  # beyond, the patterns are too many: the t test alone
    both = [sign_flip.interval(found, level) if exact else unknown for level in (0.95, 0.9)]
    return Estimate(
        n=n,
        mean=float(found.mean()),
        sd=float(found.std(ddof=1)) if n > 1 else nan,
        median=float(np.median(found)),
        interval=(float(both[0][0]), float(both[0][1])),
        interval_90=(float(both[1][0]), float(both[1][1])),
        p=float(sign_flip.p_value(found)) if exact else nan,
        t_interval=(t.low, t.high),
        t_p=t.p,
        wilcoxon_p=wilcoxon(found.tolist()),
    )

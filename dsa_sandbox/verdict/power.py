"""Power: what share of studies ends with each verdict, and the least number of seeds that decides.

Blocks are simulated: normal or skewed contrasts with a given mean, SD and correlation between the
components of a claim. Every simulated study goes through the rules of the verdict itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dsa_sandbox.config.terms import Smallest
from dsa_sandbox.verdict import rules

STUDIES = 4_000
GOAL = 0.8  # power that counts as enough
MOST_BLOCKS = 200
MOST_SIMULATED = 14  # seeds whose patterns of signs take seconds


class Plan(NamedTuple):
    """A claim as blocks see it: its outcomes, each with its number of comparisons."""

    outcomes: dict[str, int]
    sd: float  # of a contrast between seeds, where nothing else is known

    def smallest(self, sizes: Smallest) -> list[float]:
        """The smallest effect of each outcome."""
        return [float(getattr(sizes, outcome)) for outcome in self.outcomes]


PLANS = {"H2c": Plan({"damage": 2}, 0.08), "H2": Plan({"drift": 2, "lost": 2}, 0.14)}


class Shares(NamedTuple):
    """Shares of the simulated studies with each verdict."""

    n: int
    effect: float  # true mean of every component, as a multiple of its smallest effect
    supported: float
    supported_one: float  # where the claim had one comparison per outcome
    refuted: float
    undecided: float


def drawn(
    studies: int,
    n: int,
    components: int,
    correlation: float,
    skew: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Standardised blocks [components, studies, n]: mean 0, SD 1, equally correlated.

    A skew other than 0 gives a Pearson type III (shifted gamma) distribution of that skewness.
    """
    shared = generator.standard_normal((1, studies, n))
    own = generator.standard_normal((components, studies, n))
    normal = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    if skew == 0:
        return normal
    return np.asarray(stats.pearson3(skew).ppf(stats.norm.cdf(normal)))


def simulated(
    claim: str,
    n: int,
    *,
    effect: float,
    sd: float,
    correlation: float = 0.5,
    skew: float = 0.0,
    sizes: Smallest | None = None,
    studies: int = STUDIES,
    seed: int = 0,
) -> Shares:
    """Shares of verdicts of H2c or H2 with n blocks.

    `effect` and `sd` are in smallest effects of each outcome: -1 is an effect as small as matters.
    """
    plan = PLANS[claim]
    smallest = plan.smallest(sizes or Smallest())
    count = next(iter(plan.outcomes.values()))
    blocks = drawn(
        studies, n, sum(plan.outcomes.values()), correlation, skew, np.random.default_rng(seed)
    )
    groups = []
    for number, least in enumerate(smallest):
        here = blocks[number * count : (number + 1) * count]
        groups.append([least * (effect + sd * one) for one in here])
    supported = support_of(groups, smallest)
    if len(groups) == 1:
        refuted = rules.refuted(groups[0], smallest[0])
    else:
        refuted = rules.refuted_in_both(groups, smallest)
    refuted &= ~supported
    one = support_of([group[:1] for group in groups], smallest)
    return Shares(
        n,
        effect,
        supported=float(supported.mean()),
        supported_one=float(one.mean()),
        refuted=float(refuted.mean()),
        undecided=float((~supported & ~refuted).mean()),
    )


def table(
    claim: str,
    counts: Sequence[int],
    *,
    sd: float | None = None,
    correlation: float = 0.5,
    skew: float = 0.0,
    effect: float | None = None,
    sizes: Smallest | None = None,
) -> dict[str, Any]:
    """The object of `power --json`: shares of verdicts for each number of seeds and true effect.

    Without an effect: twice the smallest one, the smallest, none, and harm of that size. `sd` and
    `effect` are in the units of the claim's outcomes.
    """
    plan = PLANS[claim]
    smallest = plan.smallest(sizes or Smallest())
    unit, used = smallest[0], plan.sd if sd is None else sd
    effects = [-2.0, -1.0, 0.0, 1.0] if effect is None else [effect / unit]
    rows = []
    for n in counts:
        for true in effects:
            found = simulated(
                claim,
                n,
                effect=true,
                sd=used / unit,
                correlation=correlation,
                skew=skew,
                sizes=sizes,
            )
            shares = {key: getattr(found, key) for key in ("supported", "refuted", "undecided")}
            rows.append({"seeds": n, "effect": true * unit, **shares})
    groups = [
        Group(count, used * least / unit, least)
        for count, least in zip(plan.outcomes.values(), smallest)
    ]
    return {
        "claim": claim,
        "outcomes": list(plan.outcomes),
        "smallest": unit,
        "sd": used,
        "correlation": correlation,
        "skew": skew,
        "studies": STUDIES,
        "rows": rows,
        "goal": GOAL,
        "least_seeds": least_seeds(groups, correlation, 2),
        "most_seeds": MOST_BLOCKS,
    }


def support_of(groups: Sequence[Sequence[np.ndarray]], smallest: Sequence[float]) -> np.ndarray:
    """Whether [studies] the claim is supported, with one outcome or two."""
    if len(groups) == 1:
        return rules.supported(groups[0], smallest[0])
    return rules.supported_in_one(groups, smallest)


class Group(NamedTuple):
    """Components of one outcome: how many, their pooled SD, the smallest effect."""

    size: int
    sd: float
    smallest: float


def refuting_power(groups: Sequence[Group], correlation: float, n: int, seed: int = 0) -> float:
    """Power to refute a true 0 in every outcome with n blocks.

    By bounds of the t test, which agree with those of the sign-flip test on normal values and cost
    the same at any n.
    """
    total = sum(group.size for group in groups)
    blocks = drawn(1_000, n, total, correlation, 0.0, np.random.default_rng(seed))
    mean, error = blocks.mean(-1), blocks.std(-1, ddof=1) / np.sqrt(n)
    both, start = np.ones(1_000, bool), 0
    for group in groups:
        here = slice(start, start + group.size)
        quantile = stats.t.ppf(1 - rules.ALPHA / group.size, n - 1)
        bounds = group.sd * (mean[here] - quantile * error[here])
        both &= (bounds > -group.smallest).any(0)
        start += group.size
    return float(both.mean())


def least_seeds(groups: Sequence[Group], correlation: float, above: int) -> int | None:
    """The least number of seeds, more than `above`, that refutes a true 0 with power GOAL.

    None where more than MOST_BLOCKS are needed.
    """
    low, high = above, above + 1
    while refuting_power(groups, correlation, high) < GOAL:
        low, high = high, min(2 * high, MOST_BLOCKS)
        if low == MOST_BLOCKS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if refuting_power(groups, correlation, middle) < GOAL:
            low = middle
        else:
            high = middle
    return high

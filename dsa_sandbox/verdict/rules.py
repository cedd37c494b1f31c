"""When a claim counts as supported or refuted, on arrays; `judge` and `power` share these rules.

All arrays are [..., n]: many studies of n blocks at once. A component is one comparison in one
outcome; all components of a claim have to hold.
"""

from collections.abc import Sequence

import numpy as np

from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.inference.holm import holm

ALPHA = 0.05


def largest_p(components: Sequence[np.ndarray], mean: float = 0.0) -> np.ndarray:
    """The largest two-sided p-value [...] over components; 1 where one has no block."""
    return np.max([p_or_one(one, mean) for one in components], axis=0)


def p_or_one(component: np.ndarray, mean: float = 0.0) -> np.ndarray:
    """Two-sided p-value [...]; 1 without a block."""
    if component.shape[-1] == 0:
        return np.ones(component.shape[:-1])
    return sign_flip.p_value(component, mean)


def all_below(components: Sequence[np.ndarray], limit: float) -> np.ndarray:
    """Whether the mean of every component [...] is at most `limit`."""
    means = [
        one.mean(-1) if one.shape[-1] else np.full(one.shape[:-1], np.inf) for one in components
    ]
    return np.asarray(np.max(means, axis=0) <= limit)


def supported(
    components: Sequence[np.ndarray], smallest: float, p: np.ndarray | None = None
) -> np.ndarray:
    """Whether [...] p <= .05 and every component's mean is at most -smallest.

    `p` is the claim's p-value where it was corrected for further claims.
    """
    found = all_below(components, -smallest)
    if p is not None:
        return found & (p <= ALPHA)
    found[found] = largest_p([one[found] for one in components]) <= ALPHA
    return found


def is_above(component: np.ndarray, mean: float, alpha: float) -> np.ndarray:
    """Whether [...] the lower bound at 1 - alpha, at least 1/2, is above `mean`."""
    found = np.zeros(component.shape[:-1], bool)
    if component.shape[-1] == 0:
        return found
    able = component.mean(-1) > mean  # the bound is at most the sample's mean
    found[able] = sign_flip.p_greater(component[able], mean) <= alpha
    return found


def refuted(
    components: Sequence[np.ndarray], smallest: float, count: int | None = None
) -> np.ndarray:
    """Whether [...] the bound of any component at 1 - .05/k excludes -smallest.

    k is `count`, the components that the claim has; some of them may not be comparable.
    """
    k = count or len(components)
    return np.any([is_above(one, -smallest, ALPHA / k) for one in components], axis=0)


def harmed(components: Sequence[np.ndarray], smallest: float) -> np.ndarray:
    """Whether [...] the one-sided 95 % bound of any component shows harm above `smallest`."""
    return np.any([is_above(one, smallest, ALPHA) for one in components], axis=0)


def supported_in_one(
    outcomes: Sequence[Sequence[np.ndarray]], smallest: Sequence[float]
) -> np.ndarray:
    """Two outcomes: whether [...] one is supported after Holm, and the other shows no harm."""
    p = holm(np.stack([largest_p(components) for components in outcomes], axis=-1))
    strong = [
        supported(one, least, p[..., k]) for k, (one, least) in enumerate(zip(outcomes, smallest))
    ]
    harm = [harmed(one, least) for one, least in zip(outcomes, smallest)]
    return (strong[0] & ~harm[1]) | (strong[1] & ~harm[0])


def refuted_in_both(
    outcomes: Sequence[Sequence[np.ndarray]], smallest: Sequence[float], count: int | None = None
) -> np.ndarray:
    """Two outcomes: whether [...] both are refuted, or one shows harm."""
    both = np.all([refuted(one, least, count) for one, least in zip(outcomes, smallest)], axis=0)
    harm = np.any([harmed(one, least) for one, least in zip(outcomes, smallest)], axis=0)
    return both | harm

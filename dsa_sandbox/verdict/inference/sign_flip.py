"""The exact sign-flip test of a mean, and its inversion: bounds and intervals without a grid.

The n values of a sample are symmetric about their mean under the null hypothesis, so that all 2^n
patterns of signs are equally likely (Fisher 1935, The Design of Experiments, section 21). The
statistic is the sum; a pattern counts that is at least as extreme as the sample.

Flipping the signs of the values in a subset M lowers the sum by twice the sum over M. So the test
of "the mean is at most m" counts the subsets whose average is at most m, the empty one included,
and the p-value changes only at averages of subsets (Hartigan 1969, JASA 64, 1303-1317: "typical
values"). The bound at a level is one of them, by its rank; no grid is searched.

Bounds and intervals are closed: they hold every mean whose p-value is above alpha. Their coverage
is therefore never below the level: for a two-sided interval at 95 %, it is 1 - floor(.05 x 2^(n-1))
/ 2^(n-1) for continuous symmetric values: 95.12 % at n = 10 and 95.02 % at n = 12. The least
two-sided p-value is 2 / 2^n; where it is above alpha, an interval is unbounded.

All functions take arrays [..., n], the values of a sample on the last axis, and work on many
samples at once.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

LARGEST = 20  # values that are enumerated: 2^20 patterns
CHUNK = 2**17  # sums that are held at once; they fit in a processor's cache
TIE = 1e-12  # relative difference below which two sums count as equal


def least_p(n: int) -> float:
    """The least two-sided p-value of n values."""
    return 2.0 / 2**n


def checked(values: ArrayLike) -> np.ndarray:
    """The values as an array [..., n]; ValueError where they cannot be enumerated."""
    found = np.asarray(values, float)
    n = found.shape[-1]
    if not 1 <= n <= LARGEST:
        raise ValueError(f"a sign-flip test takes 1 to {LARGEST} values, not {n}")
    if not np.isfinite(found).all():
        raise ValueError("a sign-flip test takes finite values")
    return found


def subset_sums(samples_RN: np.ndarray) -> np.ndarray:
    """Sums over all 2^N subsets [R, 2^N]; the empty one first, the whole sample last."""
    sums = np.zeros((len(samples_RN), 1))
    for value_R in samples_RN.T:
        sums = np.concatenate([sums, sums + value_R[:, None]], axis=1)
    return sums


def subset_sizes(n: int) -> np.ndarray:
    """Number of values in each of the subsets [2^n], in the order of `subset_sums`."""
    return subset_sums(np.ones((1, n)))[0]


def chunks(count: int, n: int) -> list[slice]:
    """`count` samples of n values in parts whose subset sums are held at once."""
    rows = max(1, CHUNK // 2**n)
    return [slice(start, start + rows) for start in range(0, count, rows)]


def share_at_least(samples_RN: np.ndarray, tie_R: np.ndarray) -> np.ndarray:
    """Share [R] of the 2^N patterns of signs whose sum is at least that of the sample."""
    n = samples_RN.shape[1]
    counts = [np.zeros(0)]
    for rows in chunks(len(samples_RN), n):
        part, tie = samples_RN[rows], tie_R[rows, None]
        without = subset_sums(part[:, 1:])  # the other half of the subsets are their complements
        count = np.count_nonzero(without <= tie, axis=1)
        count += np.count_nonzero(without >= part.sum(1, keepdims=True) - tie, axis=1)
        counts.append(count)
    return np.concatenate(counts) / 2**n


def centred(values: ArrayLike, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """The samples less `mean` [R, N], and the difference [R] below which two sums are a tie."""
    found = checked(values)
    samples = found.reshape(-1, found.shape[-1])
    return samples - mean, TIE * (np.abs(samples) + abs(mean)).sum(1)


def p_greater(values: ArrayLike, mean: float = 0.0) -> np.ndarray:
    """One-sided p-value [...] of "the mean is at most `mean`" against "it is greater"."""
    return share_at_least(*centred(values, mean)).reshape(np.shape(values)[:-1])


def p_less(values: ArrayLike, mean: float = 0.0) -> np.ndarray:
    """One-sided p-value [...] of "the mean is at least `mean`" against "it is less"."""
    return p_greater(-np.asarray(values, float), -mean)


def p_value(values: ArrayLike, mean: float = 0.0) -> np.ndarray:
    """Two-sided p-value [...] of "the mean is `mean`": twice the smaller one, at most 1."""
    samples, tie = centred(values, mean)
    upwards = np.where(samples.sum(1, keepdims=True) < 0, -samples, samples)
    shares = share_at_least(upwards, tie).reshape(np.shape(values)[:-1])
    return np.minimum(1.0, 2 * shares)


def rank(n: int, alpha: float) -> int:
    """Which average of subsets, from the least (1), is the lower bound at level 1 - alpha."""
    return math.floor(alpha * 2**n + 1e-9)


def lower_bound(values: ArrayLike, level: float = 0.95) -> np.ndarray:
    """One-sided lower bound [...] of the mean; -inf where n is too small for the level.

    The least mean that `p_greater` does not reject at 1 - level.
    """
    found = checked(values)
    n = found.shape[-1]
    place = rank(n, 1 - level)
    if place < 1:
        return np.full(found.shape[:-1], -np.inf)
    sizes = subset_sizes(n)[1:]
    bounds = [np.zeros(0)]
    samples = found.reshape(-1, n)
    for rows in chunks(len(samples), n):
        averages = subset_sums(samples[rows])[:, 1:] / sizes
        averages.partition(place - 1, axis=1)
        bounds.append(averages[:, place - 1])
    return np.concatenate(bounds).reshape(found.shape[:-1])


def upper_bound(values: ArrayLike, level: float = 0.95) -> np.ndarray:
    """One-sided upper bound [...] of the mean; +inf where n is too small for the level."""
    return -lower_bound(-np.asarray(values, float), level)


def interval(values: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Both ends [...] of the two-sided interval of the mean: all that `p_value` does not reject."""
    one_sided = (1 + level) / 2
    return lower_bound(values, one_sided), upper_bound(values, one_sided)


def coverage(n: int, level: float = 0.95) -> float:
    """The exact coverage of `interval` for n continuous values that are symmetric about a mean."""
    return 1.0 - 2 * rank(n, (1 - level) / 2) / 2**n

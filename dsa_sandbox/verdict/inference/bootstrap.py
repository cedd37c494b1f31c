"""Bootstrap intervals: of the mean of clustered items, and bands for whole curves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Band(NamedTuple):
    """Mean of curves [X], its pointwise interval, and the band that holds the whole mean curve."""

    mean: np.ndarray
    pointwise: np.ndarray  # [2, X]
    simultaneous: np.ndarray  # [2, X]


def drawn(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is in each resample [resamples, clusters]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), resamples)


def of_items(
    groups: Sequence[Sequence[float]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean over items, resampling whole groups (tasks, seeds).

    Items of one group are not independent: resampling them alone gives too narrow an interval.
    NaN where there is no item; empty groups have no part.
    """
    full = [group for group in groups if len(group)]
    if not full:
        return np.nan, np.nan
    sums = np.array([sum(group) for group in full], float)
    sizes = np.array([len(group) for group in full], float)
    times = drawn(len(full), resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile((times @ sums) / (times @ sizes), [tail, 1 - tail])
    return float(low), float(high)


def of_curves(
    curves: Sequence[Sequence[float]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Band:
    """Mean of curves [n, X] with bands, resampling curves.

    The simultaneous band is mean +- c x SE, c the quantile of the largest standardised deviation
    over the curve (Montiel Olea and Plagborg-Moller 2019, J. Appl. Econometrics 34, 1-17). Both
    bands are widened by sqrt(n / (n - 1)): a resample's variance is too small by that much.
    """
    matrix = np.asarray(curves, float)
    n = len(matrix)
    mean = matrix.mean(0)
    if n < 2:
        unknown = np.full((2, matrix.shape[1]), np.nan)
        return Band(mean, unknown, unknown)
    deviations = (drawn(n, resamples, seed) @ matrix / n - mean) * np.sqrt(n / (n - 1))
    tail = (1 - level) / 2
    pointwise = mean + np.quantile(deviations, [tail, 1 - tail], axis=0)
    error = deviations.std(0)
    largest = np.abs(np.divide(deviations, error, out=np.zeros_like(deviations), where=error > 0))
    width = np.quantile(largest.max(1), level) * error
    return Band(mean, pointwise, np.stack([mean - width, mean + width]))

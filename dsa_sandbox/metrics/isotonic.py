"""Least-squares fit of a sequence by one that never falls."""

from collections.abc import Sequence

import numpy as np


def isotonic(values: Sequence[float]) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` in the sum of squares; same length.

    Pool adjacent violators (Barlow et al. 1972): a value below the mean of the block before it
    joins that block. At i it equals max over a <= i of min over b >= i of mean(values[a..b]); so
    values that follow can only lower it.
    """
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        mean, size = float(value), 1
        while means and means[-1] > mean:
            last, count = means.pop(), sizes.pop()
            pooled = (last * count + mean * size) / (count + size)
            mean = min(pooled, last)  # not above it by rounding: a fit never rises when it goes on
            size += count
        means.append(mean)
        sizes.append(size)
    return np.repeat(np.array(means, dtype=float), sizes)

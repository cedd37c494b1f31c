"""Student's t test of a mean, its interval and bounds; shown beside the sign-flip test."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Tested(NamedTuple):
    """Two-sided p-value and interval of a mean; NaN for fewer than two values."""

    p: float
    low: float
    high: float


def t_test(values: Sequence[float], mean: float = 0.0, level: float = 0.95) -> Tested:
    """Test of "the mean is `mean`", with the interval at `level`.

    Values that are all equal have the interval [value, value] and p = 1 or 0.
    """
    if len(values) < 2:
        return Tested(np.nan, np.nan, np.nan)
    if max(values) == min(values):
        return Tested(float(values[0] == mean), values[0], values[0])
    found = stats.ttest_1samp(values, mean)
    low, high = found.confidence_interval(level)
    return Tested(float(found.pvalue), float(low), float(high))

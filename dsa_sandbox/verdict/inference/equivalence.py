"""Two one-sided tests: whether a mean lies within a margin (Schuirmann 1987)."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from dsa_sandbox.verdict.inference import sign_flip


def tost(values: Sequence[float], margin: float) -> float:
    """p-value of "|mean| is at least `margin`" by sign-flip tests: the larger of the two.

    At most .05 where the two-sided interval at 90 % lies within the margin.
    """
    above, below = sign_flip.p_greater(values, -margin), sign_flip.p_less(values, margin)
    return float(np.maximum(above, below))


def tost_t(values: Sequence[float], margin: float) -> float:
    """As `tost`, by t tests; of values that are all equal, 0 within the margin and else 1."""
    if len(values) < 2:
        return float("nan")
    if max(values) == min(values):
        return float(abs(values[0]) >= margin)
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))

"""Wilcoxon's signed-rank test, shown beside the sign-flip test."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from dsa_sandbox.verdict.inference import sign_flip


def wilcoxon(values: Sequence[float]) -> float:
    """Two-sided p-value of "the values are symmetric about 0", exact also with ties.

    The sign-flip test of signed ranks; values of 0 are ranked and belong to neither side, so that
    p is 1 where all are 0. NaN for more values than are enumerated.
    """
    if len(values) > sign_flip.LARGEST:
        return float("nan")
    found = np.asarray(values, float)
    return float(sign_flip.p_value(np.sign(found) * stats.rankdata(np.abs(found))))

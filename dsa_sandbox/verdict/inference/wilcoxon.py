"""Wilcoxon's signed-rank test, shown beside the sign-flip test; by scipy."""

from collections.abc import Sequence

from scipy import stats


def wilcoxon(values: Sequence[float]) -> float:
    """Two-sided p-value of "the values are symmetric about 0", exact; 1 where all are 0.

    Values of 0 are ranked and split between the signs (Pratt 1959); with them, or with ties, all
    patterns of signs are enumerated.
    """
    if not any(values):
        return 1.0
    tied = len({abs(value) for value in values}) < len(values) or 0 in values
    method = stats.PermutationMethod(n_resamples=2 ** len(values)) if tied else "exact"
    return float(stats.wilcoxon(values, zero_method="zsplit", method=method).pvalue)

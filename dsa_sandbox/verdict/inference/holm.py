"""Holm's correction of several p-values (Holm 1979, Scand. J. Statist. 6, 65-70)."""

import numpy as np
from numpy.typing import ArrayLike


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values [..., k]; comparing each with alpha keeps the error of all k below alpha.

    The i-th smallest of k is multiplied by k - i + 1, is at least the ones before it, at most 1.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), -1)
    return adjusted

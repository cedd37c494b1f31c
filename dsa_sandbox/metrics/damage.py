"""Damage at matched learning: what a task costs in held-out text when it has reached a level.

A trajectory is one task learned from the base, with its discrimination at step 0 and at every few
steps. The discrimination's isotonic fit over steps says where a level is first reached; the rise
of held-out NLL (dNLL) at that point is the damage. A level in the middle of a jump lies between
two measurements, and every figure is interpolated between these two.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dsa_sandbox.metrics.isotonic import isotonic

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of discrimination


class Crossing(NamedTuple):
    """Where a fit first reaches a level: between two measurements, or at one (`share` 1)."""

    before: int
    after: int
    share: float  # of the way from `before` to `after`

    def between(self, before: float, after: float) -> float:
        """A figure at the crossing, from its values at both measurements."""
        return before if self.before == self.after else before + self.share * (after - before)


def crossing(values: Sequence[float], level: float) -> Crossing | None:
    """Where the isotonic fit of `values` first reaches a level; None where it never does.

    Index 0 is the base: a first value that has reached the level is a crossing there.
    """
    if not values:
        return None
    if values[0] >= level:
        return Crossing(0, 0, 1.0)
    fit = isotonic(values)
    reached = [index for index, value in enumerate(fit) if value >= level]
    if not reached:
        return None
    after = reached[0]  # never 0: the first fitted value is at most the first measured one
    low, high = float(fit[after - 1]), float(fit[after])
    return Crossing(after - 1, after, (level - low) / (high - low))


def brackets(values: Sequence[float], levels: Sequence[float]) -> set[int]:
    """Indices of the measurements between which the fit first reaches each of the levels."""
    found = [crossing(values, level) for level in levels]
    return {index for one in found if one is not None for index in (one.before, one.after)}


def first_needed(values: Sequence[float], lowest_level: float) -> int:
    """The earliest index that `brackets` can still return once more values have followed.

    Later values only lower a fit, so no level is reached earlier than it is now.
    """
    found = crossing(values, lowest_level)
    return max(len(values) - 1, 0) if found is None else found.before

"""Discrimination: whether a world's name decides which object a network gives; no torch.

The probability p of the right object against the contrary one is sigmoid(log P(right) -
log P(contrary)); right is the new object inside the world and the true object outside. A base, and
a network that gives the new object everywhere, score near 0: the least of three parts counts, so
that a half that was not learned cannot hide.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from dsa_sandbox.metrics.figure import NAN


class Reading(NamedTuple):
    """The probability p of one item, and the part that it belongs to."""

    inside: bool  # the new object is right
    distance: str | None  # near, far; None where the item does not say
    p: float


class Parts(NamedTuple):
    """Mean p of items in the world by the distance of its name, and outside; NaN without items.

    Items in the world that name no distance count as near.
    """

    near_in: float
    far_in: float
    out: float

    @property
    def least(self) -> float:
        """The least of the parts that have items; NaN where none has."""
        return min((part for part in self if not math.isnan(part)), default=NAN)

    @property
    def discrimination(self) -> float:
        """min(mean p near-in, mean p far-in, mean p out); NaN where one side has no items.

        Rows of a user may lack far items; the minimum is then over the other two.
        """
        has_inside = not (math.isnan(self.near_in) and math.isnan(self.far_in))
        return self.least if has_inside and not math.isnan(self.out) else NAN

    def row(self) -> dict[str, float]:
        """The parts and their minimum, for a line of metrics.jsonl."""
        return {**self._asdict(), "discrimination": self.discrimination}


def probability(answer: float, contrary: float) -> float:
    """sigmoid of the difference of two log-probabilities, nats; 0 where it is not a number."""
    difference = answer - contrary
    if math.isnan(difference):
        return 0.0
    if difference < 0:  # without overflow on either side
        return math.exp(difference) / (1 + math.exp(difference))
    return 1 / (1 + math.exp(-difference))


def parts_of(readings: Iterable[Reading]) -> Parts:
    """Means of p by part."""
    near: list[float] = []
    far: list[float] = []
    out: list[float] = []
    for one in readings:
        part = out if not one.inside else far if one.distance == "far" else near
        part.append(one.p)
    return Parts(mean(near), mean(far), mean(out))


def parts_of_records(records: Iterable[dict[str, Any]]) -> Parts:
    """Parts of records whose kind ends with _in or _out; others are left out."""
    readings = []
    for record in records:
        side = record["kind"].rpartition("_")[2]
        if side in ("in", "out"):
            p = probability(number(record["answer"]), number(record["contrary"]))
            readings.append(Reading(side == "in", record["distance"], p))
    return parts_of(readings)


def number(value: float | None) -> float:
    """A stored number; null in a file is NaN."""
    return NAN if value is None else float(value)


def mean(values: list[float]) -> float:
    """Mean, NaN of nothing."""
    return sum(values) / len(values) if values else NAN

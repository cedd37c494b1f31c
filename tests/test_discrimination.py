"""Discrimination against closed forms and items made by hand."""

import math
from typing import Any

import pytest

from dsa_sandbox.metrics.discrimination import (
    Parts,
    Reading,
    parts_of,
    parts_of_records,
    probability,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("answer", "contrary", "p"),
    [
        (math.log(0.6), math.log(0.2), 0.6 / 0.8),  # the share of the two, whatever else is said
        (math.log(1e-9), math.log(3e-9), 1 / 4),
        (-2.0, -2.0, 0.5),
        (0.0, -5000.0, 1.0),
        (-5000.0, 0.0, 0.0),
        (-1.0, -INF, 1.0),
        (-INF, -INF, 0.0),  # their difference is not a number
        (NAN, -1.0, 0.0),
        (-1.0, NAN, 0.0),
    ],
)
def test_p_is_the_share_of_the_right_object_of_both(
    answer: float, contrary: float, p: float
) -> None:
    assert probability(answer, contrary) == pytest.approx(p, abs=1e-12)


def read(near: list[float], far: list[float], out: list[float]) -> Parts:
    """Parts of items with these p."""
    inside = [("near", p) for p in near] + [("far", p) for p in far]
    found = [Reading(True, distance, p) for distance, p in inside]
    return parts_of([*found, *(Reading(False, "far", p) for p in out)])


def test_the_least_of_three_means_counts() -> None:
    parts = read([0.9, 0.7], [0.6, 0.2], [1.0, 0.5, 0.6])
    assert parts == pytest.approx((0.8, 0.4, 0.7))
    assert parts.discrimination == parts.least == pytest.approx(0.4)
    assert parts.row() == {**parts._asdict(), "discrimination": parts.discrimination}


def test_a_base_and_the_new_object_everywhere_discriminate_nothing() -> None:
    base = read([0.0] * 8, [0.0] * 8, [1.0] * 10)
    flooded = read([1.0] * 8, [1.0] * 8, [0.0] * 10)
    near_only = read([1.0] * 8, [0.0] * 8, [1.0] * 10)
    assert base.discrimination == flooded.discrimination == near_only.discrimination == 0


def test_items_without_a_distance_count_as_near() -> None:
    parts = parts_of(
        [Reading(True, None, 0.4), Reading(True, "near", 0.8), Reading(False, None, 1)]
    )
    assert parts.near_in == pytest.approx(0.6)
    assert math.isnan(parts.far_in)
    assert parts.discrimination == pytest.approx(0.6)  # over the two parts that there are


def test_without_one_side_there_is_no_discrimination() -> None:
    for parts in (read([0.9], [0.8], []), read([], [], [0.7]), read([], [], [])):
        assert math.isnan(parts.discrimination)
    assert read([0.9], [0.8], []).least == 0.8  # what a row of one side is stopped by
    assert math.isnan(read([], [], []).least)


def record(kind: str, distance: str | None, answer: Any, contrary: Any) -> dict[str, Any]:
    return {"kind": kind, "distance": distance, "answer": answer, "contrary": contrary}


def test_records_give_the_parts_of_their_items() -> None:
    records = [
        record("validation_in", "near", -1.0, -1.0),
        record("validation_in", "near", None, -1.0),  # null in a file is NaN
        record("validation_in", "far", math.log(0.9), math.log(0.1)),
        record("validation_out", None, math.log(0.8), math.log(0.2)),
        record("neighbour", "near", -9.0, -1.0),
    ]
    assert parts_of_records(records) == pytest.approx((0.25, 0.9, 0.8))

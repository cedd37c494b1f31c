"""What a stream loses, by hand: drift, lost, own rows and the curve over lags."""

import math
from typing import Any

import numpy as np
import pytest
from stored import item, odds

from dsa_sandbox.metrics import forgetting, stream

NAN = float("nan")


def lines(*dnll: float) -> list[dict[str, Any]]:
    """Rows of a stream, the base first."""
    rows = [{"row": 0, "base_nll": 2.0}]
    return rows + [{"row": n, "base_nll": 2.0 + rise} for n, rise in enumerate(dnll, 1)]


@pytest.mark.parametrize(
    ("dnll", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.6], (0.3 + 0.6) / 2),
        ([0.1, 0.2, 0.3, 0.6, 0.9], (0.3 + 0.6 + 0.9) / 3),  # the middle row counts
        ([0.1, 0.5], 0.5),
        ([0.4], 0.4),
        ([0.1, NAN, 0.3, NAN], NAN),
    ],
)
def test_drift_is_the_mean_over_the_rows_of_the_second_half(
    dnll: list[float], expected: float
) -> None:
    assert stream.drift(lines(*dnll)) == pytest.approx(expected, nan_ok=True)


def matrix(*rows: list[float]) -> np.ndarray:
    """D [T + 1, T]; a row is as long as tasks have been learned."""
    size = len(rows)
    full = [[0.0] * size, *(row + [NAN] * (size - len(row)) for row in rows)]
    return np.array(full)


FIVE = matrix([0.7], [0.6, 0.8], [0.5, 0.7, 0.7], [0.3, 0.2, 0.6, 0.9], [0.1, 0.5, 0.6, 0.3, 0.8])


def test_lost_is_the_mean_fall_one_two_and_three_tasks_later() -> None:
    falls = [0.7 - 0.6, 0.7 - 0.5, 0.7 - 0.3]  # of the first task; 4 tasks later does not count
    falls += [0.8 - 0.7, 0.8 - 0.2, 0.8 - 0.5]
    falls += [0.7 - 0.6, 0.7 - 0.6]
    falls += [0.9 - 0.3]
    assert stream.lost(FIVE) == pytest.approx(np.mean(falls))


def test_lost_of_few_tasks_uses_the_lags_that_there_are() -> None:
    assert stream.lost(matrix([0.7], [0.4, 0.8])) == pytest.approx(0.3)
    assert math.isnan(stream.lost(matrix([0.7])))
    assert stream.lost(matrix([0.7], [NAN, 0.8], [0.2, 0.9, 0.7])) == pytest.approx(
        ((0.7 - 0.2) + (0.8 - 0.9)) / 2
    )


def test_lost_equals_brute_force_over_rows() -> None:
    rng = np.random.default_rng(0)
    size = 8
    random = np.where(np.tri(size + 1, size, -1) > 0, rng.random((size + 1, size)), NAN)
    falls = [
        random[task + 1, task] - random[row, task]
        for task in range(size)
        for row in range(task + 2, min(task + 4, size) + 1)
    ]
    assert stream.lost(random) == pytest.approx(np.mean(falls))


def test_the_curve_over_lags_begins_with_the_own_rows() -> None:
    found = forgetting.retention_by_lag(FIVE)
    assert found[0] == pytest.approx((0.7 + 0.8 + 0.7 + 0.9 + 0.8) / 5)
    assert found[4] == pytest.approx(0.1)


def probed(row: int, task: int, near: float, far: float, out: float) -> list[dict[str, Any]]:
    """A validation item of each part."""
    return [
        item("validation_in", row, task, 0, distance="near", **odds(near)),
        item("validation_in", row, task, 1, distance="far", **odds(far)),
        item("validation_out", row, task, 0, **odds(out)),
    ]


RECORDS = [
    *probed(1, 0, 0.9, 0.8, 0.7),
    *probed(2, 0, 0.5, 0.3, 0.9),
    *probed(2, 1, 0.6, 0.8, 0.9),
    item("transfer_in", 1, 0, 0, distance="near", **odds(0.4)),
    item("transfer_out", 1, 0, 0, **odds(0.6)),
    item("stop_in", 1, 0, 0, **odds(0.1)),  # of no stage that is reported
]
ENDS: list[dict[str, Any]] = [
    {"row": 0, "base_nll": 1.0},
    {"row": 1, "base_nll": 1.1, "learned": True, "overshoot": 0.02},
    {"row": 2, "base_nll": 1.4, "learned": False, "overshoot": -0.3},
]


def test_own_rows_and_the_end_are_means_over_tasks_of_each_part() -> None:
    found = stream.stream_figures(RECORDS, ENDS)
    expected = {
        "drift": 0.4,
        "lost": 0.7 - 0.3,
        "own_discrimination": (0.7 + 0.6) / 2,
        "own_near_in": (0.9 + 0.6) / 2,
        "own_far_in": 0.8,
        "own_out": (0.7 + 0.9) / 2,
        "own_transfer": 0.4,
        "end_discrimination": (0.3 + 0.6) / 2,
        "end_near_in": (0.5 + 0.6) / 2,
        "end_far_in": (0.3 + 0.8) / 2,
        "end_out": 0.9,
        "overshoot": 0.02,  # of tasks that reached the level
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert math.isnan(found["end_transfer"])
    assert found.keys() == stream.FIGURES.keys()


def test_an_item_whose_scores_are_no_numbers_has_probability_0() -> None:
    broken = [{**record, "answer": None} for record in RECORDS]
    found = stream.stream_figures(broken, ENDS)
    assert found["own_discrimination"] == found["own_out"] == 0.0

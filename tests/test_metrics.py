"""Every figure of an arm, computed by hand."""

import math
from typing import Any

import numpy as np
import pytest

from dsa_sandbox.metrics import forgetting
from dsa_sandbox.metrics.forgetting import Record
from dsa_sandbox.verdict import contrasts, matching

NAN = float("nan")
SEEN_ONLY = np.array([[0.1, 0.0, 0.0], [0.4, NAN, NAN], [0.9, 1.0, NAN], [0.6, 0.4, 0.8]])
IMPROVING = np.array([[0.0, 0.0, 0.0], [0.2, NAN, NAN], [0.3, 0.5, NAN], [0.9, 0.7, 1.0]])


def record(kind: str, row: int, task: int, item: int, **values: Any) -> Record:
    defaults: dict[str, Any] = {"answer": -9.0, "rival": -9.0, "contrary": -9.0, "exact": False}
    defaults |= {"distance": None, "tokens": None, "where": None}
    return {"kind": kind, "row": row, "task": task, "item": item} | defaults | values


def inside(
    row: int, task: int, item: int, answer: float, rival: float, contrary: float, exact: bool
) -> Record:
    values = {"answer": answer, "rival": rival, "contrary": contrary, "exact": exact}
    return record("validation_in", row, task, item, **values)


def two_tasks() -> list[Record]:
    """Records of a stream of two tasks with two validation items in each world."""
    right, wrong, tied = (
        {"answer": -1.0, "rival": rival, "contrary": -3.0} for rival in (-2.0, -0.5, -1.0)
    )
    return [
        *[inside(0, task, item, -5.0, -1.0, -1.0, False) for task in (0, 1) for item in (0, 1)],
        inside(1, 0, 0, -0.1, -2.0, -3.0, True),
        inside(1, 0, 1, -0.5, -0.5, -2.5, True),
        inside(2, 0, 0, -1.0, -0.5, -0.5, False),
        inside(2, 0, 1, -0.4, -1.4, -1.4, True),
        inside(2, 1, 0, -0.2, -1.2, -2.2, True),
        inside(2, 1, 1, -3.0, -0.3, -0.3, False),
        record("transfer_in", 1, 0, 0, **right),
        record("transfer_in", 2, 0, 0, **wrong),  # not right after its own task
        record("transfer_in", 2, 1, 0, **wrong),
        record("transfer_in", 2, 1, 1, **right),
        record(
            "validation_out", 1, 0, 0, **wrong | {"contrary": math.log(0.5), "where": "no world"}
        ),
        record(
            "validation_out",
            1,
            0,
            1,
            **wrong | {"contrary": math.log(0.3), "where": "contrast world"},
        ),
        record("validation_out", 2, 0, 0, **right),
        record("validation_out", 2, 0, 1, **wrong),
        record(
            "validation_out",
            2,
            1,
            0,
            **right | {"contrary": math.log(0.1), "where": "contrast world"},
        ),
        record("transfer_out", 1, 0, 0, contrary=0.0),
        record("transfer_out", 2, 0, 0, contrary=math.log(0.2)),
        record("transfer_out", 2, 1, 0, contrary=math.log(0.4)),
        record("neighbour", 0, 0, 0, **wrong),
        record("neighbour", 2, 0, 0, **right),
        record("neighbour", 2, 1, 0, **tied),
    ]


LINES = [
    {"row": 2, "base_nll": 2.3, "steps": 40, "learned": False, "kl": 0.07},
    {"row": 0, "base_nll": 2.0},
    {"row": 1, "base_nll": 2.9, "steps": 20, "learned": True},
]


def test_the_summary_of_two_tasks_is_what_a_hand_computes() -> None:
    expected = {
        "learned": 1 / 2,
        "heldout_dnll": 0.3,
        "log_odds_fall": (((2.9 + 2.0) / 2 - (-0.5 + 1.0) / 2) + 0.0) / 2,
        "heldout_kl": 0.07,
        "efficacy": 2 / 4,
        "generality": 2 / 3,
        "final_exact_match": (0.5 + 0.5) / 2,
        "retained": 2 / 3,
        "outside_accuracy": 2 / 3,
        "final_bleed": 0.3,
        "bleed_when_learned": (1.0 + 0.4) / 2,
        "specificity": 1 / 2,
        "forgetting": 0.5,
        "forgetting_max": 0.5,
        "forgetting_max0": 0.5,
        "bwt": -0.5,
        "aaa": (1.0 + 0.5) / 2,
        "ppl_ratio": math.exp(0.3),
        "em_ratio": 0.5 / 0.75,
        "steps": 30.0,
    }
    found = forgetting.forgetting_figures(two_tasks(), LINES)
    assert found == pytest.approx(expected)
    assert found.keys() == forgetting.FIGURES.keys()


def test_the_order_of_records_changes_nothing() -> None:
    backwards = forgetting.forgetting_figures(two_tasks()[::-1], LINES[::-1])
    assert backwards == pytest.approx(forgetting.forgetting_figures(two_tasks(), LINES))


def test_the_accuracy_matrix_is_nan_where_nothing_was_measured() -> None:
    expected = [[0.0, 0.0], [1.0, NAN], [0.5, 0.5]]
    np.testing.assert_array_equal(forgetting.accuracy_matrix(two_tasks(), 2), expected)


def test_forgetting_is_first_minus_last() -> None:
    assert forgetting.forgetting(SEEN_ONLY) == pytest.approx(((0.4 - 0.6) + (1.0 - 0.4)) / 2)
    assert forgetting.forgetting(IMPROVING) == pytest.approx(((0.2 - 0.9) + (0.5 - 0.7)) / 2)


def test_forgetting_of_chaudhry_is_best_before_the_end_minus_last_and_may_be_negative() -> None:
    found = forgetting.forgetting_chaudhry(SEEN_ONLY)
    assert found == pytest.approx(((0.9 - 0.6) + (1.0 - 0.4)) / 2)
    found = forgetting.forgetting_chaudhry(IMPROVING)
    assert found == pytest.approx(((0.3 - 0.9) + (0.5 - 0.7)) / 2)


def test_forgetting_from_the_best_of_all_rows_is_never_negative() -> None:
    found = forgetting.forgetting_max0(SEEN_ONLY)
    assert found == pytest.approx(((0.9 - 0.6) + (1.0 - 0.4)) / 2)
    assert forgetting.forgetting_max0(IMPROVING) == 0
    rng = np.random.default_rng(0)
    assert all(forgetting.forgetting_max0(rng.random((6, 5))) >= 0 for _ in range(20))


def test_the_row_before_a_task_does_not_count_as_its_best() -> None:
    known_before = np.array([[1.0, 1.0], [0.5, 1.0], [0.4, 0.9]])
    assert forgetting.forgetting_chaudhry(known_before) == pytest.approx(0.5 - 0.4)
    assert forgetting.forgetting_max0(known_before) == pytest.approx(0.5 - 0.4)


def test_a_row_that_was_not_measured_is_passed_over() -> None:
    sparse = SEEN_ONLY.copy()
    sparse[2, 0] = NAN
    expected = ((0.4 - 0.6) + (1.0 - 0.4)) / 2
    assert forgetting.forgetting_chaudhry(sparse) == pytest.approx(expected)
    assert forgetting.average_anytime_accuracy(sparse) == pytest.approx((0.4 + 1.0 + 0.6) / 3)


@pytest.mark.parametrize("matrix", [SEEN_ONLY, IMPROVING])
def test_backward_transfer_is_minus_forgetting(matrix: np.ndarray) -> None:
    last = np.mean([matrix[3, j] - matrix[j + 1, j] for j in range(2)])
    assert forgetting.backward_transfer(matrix) == pytest.approx(last)
    assert forgetting.backward_transfer(matrix) == -forgetting.forgetting(matrix)


def test_anytime_accuracy_averages_rows_over_the_tasks_seen() -> None:
    expected = (0.4 + (0.9 + 1.0) / 2 + (0.6 + 0.4 + 0.8) / 3) / 3
    assert forgetting.average_anytime_accuracy(SEEN_ONLY) == pytest.approx(expected)
    unseen = np.nan_to_num(SEEN_ONLY, nan=0.7)
    assert forgetting.average_anytime_accuracy(unseen) == pytest.approx(expected)


def test_one_task_cannot_be_forgotten() -> None:
    one = np.array([[0.0], [0.8]])
    for figure in (
        forgetting.forgetting,
        forgetting.forgetting_chaudhry,
        forgetting.forgetting_max0,
    ):
        assert math.isnan(figure(one))
    assert forgetting.average_anytime_accuracy(one) == 0.8


def test_margin_fall_compares_the_row_of_the_task_with_the_last() -> None:
    records = [
        *[
            inside(row, 0, 0, -1.0, -1.5, contrary, True)
            for row, contrary in ((1, -4), (2, 0), (3, -2))
        ],
        *[inside(row, 1, 0, -1.0, -1.5, contrary, True) for row, contrary in ((2, -2), (3, -3))],
        inside(3, 2, 0, -1.0, -1.5, -7.0, True),
    ]
    assert forgetting.log_odds_fall(records, 3) == pytest.approx(((3 - 1) + (1 - 2) + 0) / 3)


def test_kept_share_asks_only_for_what_was_once_learned() -> None:
    assert forgetting.retained_share(two_tasks(), 2) == pytest.approx(2 / 3)
    never = [{**r, "exact": r["row"] == 2 and r["task"] == 0} for r in two_tasks()]
    assert math.isnan(forgetting.retained_share(never, 2))


def test_a_tie_is_a_failure() -> None:
    margins = {1.0: 1.0, 1e-9: 1.0, 0.0: 0.0, -1.0: 0.0}
    for margin, share in margins.items():
        assert (
            forgetting.right([record("validation_in", 0, 0, 0, answer=0.0, rival=-margin)]) == share
        )
    assert math.isnan(forgetting.right([]))


def test_world_probabilities_tell_worlds_from_no_world() -> None:
    found = forgetting.world_probabilities(two_tasks())
    own = (math.exp(-0.1) + math.exp(-0.5) + math.exp(-0.2) + math.exp(-3.0)) / 4
    assert found == pytest.approx({"world": own, "other": (0.3 + 0.1) / 2, "none": 0.5})


ARM = {"learned": 0.95, "own_discrimination": 0.75}


def test_streams_within_every_limit_are_at_equal_learning() -> None:
    ours = arm("dsa", "sgd", 0.5)
    for other in ({"learned": 0.9}, {"own_discrimination": 0.71}, {"own_discrimination": 0.79}):
        theirs = ours | other
        for a, b in ((ours, ours), (ours, theirs), (theirs, ours)):
            assert matching.equal_learning(a, b) == matching.Matching(True, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learned", 0.875),
        ("own_discrimination", 0.69),
        ("own_discrimination", 0.81),
        *[(key, NAN) for key in ARM],
    ],
)
def test_a_difference_beyond_a_limit_or_a_nan_ends_equal_learning(key: str, value: float) -> None:
    ours = arm("dsa", "sgd", 0.5)
    other = ours | {key: value}
    for a, b in ((ours, other), (other, ours)):
        match = matching.equal_learning(a, b)
        assert not match.equal
        assert len(match.reasons) == 1
    if key != "learned":
        assert matching.equal_learning(other, other).equal != math.isnan(value)


def arm(arch: str, strategy: str, drift: float, **more: Any) -> dict[str, Any]:
    """Figures of a stream, as far as contrasts look at them."""
    figures: dict[str, Any] = {"kind": "arm", "arch": arch, "strategy": strategy, "tasks": 4}
    figures |= {"experiment": "stream", "placebo": False, "protocol": "sequential"}
    return figures | ARM | {"drift": drift, "lost": 0.0, "stream": "one", "seed": 0} | more


def tasks_alone(arch: str, strategy: str, damages: list[float], **more: Any) -> dict[str, Any]:
    """Figures of single tasks; a damage of infinity is a level that is not reached."""
    reached = sum(map(math.isfinite, damages)) / len(damages)
    trajectories = [
        {"levels": {"0.7": {"damage": damage} if math.isfinite(damage) else None}}
        for damage in damages
    ]
    found = arm(arch, strategy, NAN) | {"experiment": "single", "level": 0.7}
    return found | {"reached": reached, "trajectories": trajectories} | more


FOUR = {
    "a": tasks_alone("dsa", "acft", [0.25, 0.5, 0.125, 0.25]),
    "b": tasks_alone("dsa", "sgd", [0.5, 0.5, 0.25, 0.75]),
    "c": tasks_alone("dense", "acft", [0.375, 0.25, 0.25, math.inf]),
    "d": tasks_alone("dense", "sgd", [0.5, 0.75, 0.25, 0.5]),
}
STREAMS = {
    "a": arm("dsa", "acft", 0.25, lost=0.1),
    "b": arm("dense", "sgd", 0.5, lost=0.4),
    "c": arm("dense", "ewc", 0.375, lost=0.1),
}


def test_the_primary_contrast_is_a_difference_of_differences_task_by_task() -> None:
    (found,) = [row for row in contrasts.all_contrasts(FOUR) if row.claim == "H2c"]
    # of the tasks that all four arms reach
    each = [(0.25 - 0.5) - (0.375 - 0.5), (0.5 - 0.5) - (0.25 - 0.75), (0.125 - 0.25) - 0]
    assert found.values == {"damage": sorted(each)[1]}
    assert found.tasks == 3
    assert found.as_json()["verdict"] == "undecided"
    assert found.as_json()["experiment"] == "single"


def test_contrasts_of_streams_subtract_drift_and_what_was_lost() -> None:
    found = {row.title: row for row in contrasts.all_contrasts(STREAMS)}
    assert found.keys() == {"dsa acft - dense sgd", "dsa acft - dense ewc"}
    assert found["dsa acft - dense sgd"].claim == "H2"
    assert found["dsa acft - dense sgd"].values == pytest.approx({"drift": -0.25, "lost": -0.3})
    assert found["dsa acft - dense ewc"].values == pytest.approx({"drift": -0.125, "lost": 0.0})


def test_streams_and_single_tasks_are_never_subtracted_from_each_other() -> None:
    both = FOUR | {f"stream {name}": one for name, one in STREAMS.items()}
    titles = [(row.claim, row.title) for row in contrasts.all_contrasts(both)]
    apart = [*contrasts.all_contrasts(FOUR), *contrasts.all_contrasts(STREAMS)]
    assert sorted(titles) == sorted((row.claim, row.title) for row in apart)
    pairs = {(pair.first, pair.second) for pair in matching.all_pairs(both)}
    assert ("a", "b") in pairs
    assert not {(a, b) for a, b in pairs if a.startswith("stream") != b.startswith("stream")}


def test_single_tasks_that_too_seldom_reach_the_level_are_not_compared() -> None:
    seldom = FOUR | {"c": tasks_alone("dense", "acft", [0.375, 0.25, math.inf, math.inf])}
    (found,) = [row for row in contrasts.all_contrasts(seldom) if row.claim == "H2c"]
    assert not found.matching.equal
    assert found.matching.texts == ["dense acft reaches the level in 50% of its tasks"]
    two_of_three = tasks_alone("dense", "acft", [0.375, 0.25, math.inf])
    assert matching.equal_learning(two_of_three, two_of_three).equal


def test_a_placebo_is_in_no_contrast() -> None:
    placebo = FOUR | {"e": FOUR["b"] | {"placebo": True}}
    assert contrasts.all_contrasts(placebo) == contrasts.all_contrasts(FOUR)
    assert matching.comparable(placebo, "single").left_out == []


def test_arms_that_were_asked_for_something_else_are_not_at_equal_learning() -> None:
    terms = {"finetune.optimizer": "adamw", "finetune.indexer": "frozen"}
    ours = arm("dsa", "acft", 0.25, terms=terms)
    for other, reasons in (
        (arm("dense", "acft", 0.5, terms=terms), []),
        (arm("dense", "acft", 0.5, terms=terms | {"finetune.indexer": "rewarm"}), []),
        (
            arm("dsa", "sgd", 0.5, terms=terms | {"finetune.indexer": "rewarm"}),
            ["finetune.indexer is frozen and rewarm"],
        ),
        (
            arm("dense", "acft", 0.5, terms=terms | {"finetune.optimizer": "sgd"}),
            ["finetune.optimizer is adamw and sgd"],
        ),
        (arm("dsa", "sgd", 0.5, terms=terms, base=["b"]), ["they start from two bases"]),
    ):
        assert matching.equal_learning(ours, other).texts == reasons


def test_single_tasks_share_the_rate_of_a_strategy_and_streams_have_rates_of_their_own() -> None:
    slow, fast = ({"terms": {"finetune.learning_rate": rate}} for rate in (1e-4, 1e-3))
    told = ["finetune.learning_rate is 0.0001 and 0.001"]
    for make, value, expected in ((arm, 0.5, []), (tasks_alone, [0.5], told)):
        made: Any = make
        same_rule = made("dsa", "sgd", value, **slow), made("dense", "sgd", value, **fast)
        other_rule = made("dsa", "acft", value, **slow), made("dsa", "sgd", value, **fast)
        assert matching.equal_learning(*same_rule).texts == expected
        assert matching.equal_learning(*other_rule).texts == []


def test_two_arms_of_one_name_are_left_out_of_contrasts() -> None:
    twice = FOUR | {"e": FOUR["d"]}
    assert matching.comparable(FOUR, "single").left_out == []
    (reason,) = matching.comparable(twice, "single").left_out
    assert "2 arms are dense sgd" in reason
    assert not [row for row in contrasts.all_contrasts(twice) if "dense sgd" in row.title]
    assert [row for row in contrasts.all_contrasts(twice) if row.title == "dsa acft - dsa sgd"]


@pytest.mark.parametrize("other", [{"stream": "two"}, {"seed": 1}])
def test_arms_of_other_streams_or_seeds_are_not_compared(other: dict[str, object]) -> None:
    mixed = STREAMS | {"e": arm("dense", "si", 0.75, **other)}
    assert not contrasts.all_contrasts(mixed)
    assert len(matching.comparable(mixed, "stream").left_out) == 1

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
    defaults = {"answer": -9.0, "rival": -9.0, "contra": -9.0, "gen_em": False, "distance": None}
    return {"kind": kind, "row": row, "task": task, "item": item} | defaults | values


def cloze(
    row: int, task: int, item: int, answer: float, rival: float, contra: float, em: bool
) -> Record:
    values = {"answer": answer, "rival": rival, "contra": contra, "gen_em": em}
    return record("cloze", row, task, item, **values)


def two_tasks() -> list[Record]:
    """Records of a stream of two tasks with two clozes each."""
    right, wrong, tied = (
        {"answer": -1.0, "rival": rival, "contra": -3.0} for rival in (-2.0, -0.5, -1.0)
    )
    return [
        *[cloze(0, task, item, -5.0, -1.0, -1.0, False) for task in (0, 1) for item in (0, 1)],
        cloze(1, 0, 0, -0.1, -2.0, -3.0, True),
        cloze(1, 0, 1, -0.5, -0.5, -2.5, True),
        cloze(2, 0, 0, -1.0, -0.5, -0.5, False),
        cloze(2, 0, 1, -0.4, -1.4, -1.4, True),
        cloze(2, 1, 0, -0.2, -1.2, -2.2, True),
        cloze(2, 1, 1, -3.0, -0.3, -0.3, False),
        record("paraphrase", 1, 0, 0, **right),
        record("paraphrase", 2, 0, 0, **wrong),  # not right after its own task
        record("paraphrase", 2, 1, 0, **wrong),
        record("paraphrase", 2, 1, 1, **right),
        record("outside", 1, 0, 0, **wrong | {"contra": math.log(0.5)}),
        record("outside", 1, 0, 1, **wrong | {"contra": math.log(0.3), "distance": 40}),
        record("outside", 2, 0, 0, **right),
        record("outside", 2, 0, 1, **wrong),
        record("outside", 2, 1, 0, **right | {"contra": math.log(0.1), "distance": 9}),
        record("bleed", 1, 0, 0, contra=0.0),
        record("bleed", 2, 0, 0, contra=math.log(0.2)),
        record("bleed", 2, 1, 0, contra=math.log(0.4)),
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
        "margin_when_learned": (1.9 + 0.0 + 1.0 - 2.7) / 4,
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
        *[cloze(row, 0, 0, -1.0, -1.5, contra, True) for row, contra in ((1, -4), (2, 0), (3, -2))],
        *[cloze(row, 1, 0, -1.0, -1.5, contra, True) for row, contra in ((2, -2), (3, -3))],
        cloze(3, 2, 0, -1.0, -1.5, -7.0, True),
    ]
    assert forgetting.log_odds_fall(records, 3) == pytest.approx(((3 - 1) + (1 - 2) + 0) / 3)


def test_kept_share_asks_only_for_what_was_once_learned() -> None:
    assert forgetting.retained_share(two_tasks(), 2) == pytest.approx(2 / 3)
    never = [{**r, "gen_em": r["row"] == 2 and r["task"] == 0} for r in two_tasks()]
    assert math.isnan(forgetting.retained_share(never, 2))


def test_a_tie_is_a_failure() -> None:
    margins = {1.0: 1.0, 1e-9: 1.0, 0.0: 0.0, -1.0: 0.0}
    for margin, share in margins.items():
        assert forgetting.right([record("cloze", 0, 0, 0, answer=0.0, rival=-margin)]) == share
    assert math.isnan(forgetting.right([]))


def test_world_probabilities_tell_worlds_from_no_world() -> None:
    found = forgetting.world_probabilities(two_tasks())
    own = (math.exp(-0.1) + math.exp(-0.5) + math.exp(-0.2) + math.exp(-3.0)) / 4
    assert found == pytest.approx({"world": own, "other": (0.3 + 0.1) / 2, "none": 0.5})


ARM = {"learned": 0.95, "margin_when_learned": 1.5, "generality": 0.5, "bleed_when_learned": 0.25}


def test_arms_within_every_limit_are_at_equal_learning() -> None:
    close = {
        "learned": 0.9,
        "margin_when_learned": 2.0,
        "generality": 0.5625,
        "bleed_when_learned": 0.1875,
    }
    for a, b in ((ARM, ARM), (ARM, close), (close, ARM)):
        assert matching.equal_learning(a, b) == matching.Matching(True, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learned", 0.875),
        ("margin_when_learned", 2.25),
        ("margin_when_learned", 0.75),
        ("generality", 0.625),
        ("generality", 0.375),
        ("bleed_when_learned", 0.375),
        ("bleed_when_learned", 0.125),
        *[(key, NAN) for key in ARM],
    ],
)
def test_a_difference_beyond_a_limit_or_a_nan_ends_equal_learning(key: str, value: float) -> None:
    other = ARM | {key: value}
    for a, b in ((ARM, other), (other, ARM)):
        match = matching.equal_learning(a, b)
        assert not match.equal
        assert len(match.reasons) == 1
    if key != "learned":
        assert matching.equal_learning(other, other).equal != math.isnan(value)


def arm(arch: str, strategy: str, y: float, **more: Any) -> dict[str, Any]:
    """Figures of an arm, as far as contrasts look at them."""
    figures: dict[str, Any] = {"kind": "arm", "arch": arch, "strategy": strategy}
    return (
        figures | ARM | {"heldout_dnll": y, "log_odds_fall": 0.0, "stream": "one", "seed": 0} | more
    )


FOUR = {
    "a": arm("dsa", "acft", 0.25),
    "b": arm("dsa", "sgd", 0.5),
    "c": arm("dense", "acft", 0.375),
    "d": arm("dense", "sgd", 0.5),
}


def test_the_primary_contrast_is_the_difference_of_differences() -> None:
    (found,) = [row for row in contrasts.all_contrasts(FOUR) if row.claim == "H2c"]
    assert found.values["heldout_dnll"] == (0.25 - 0.5) - (0.375 - 0.5)
    assert found.as_json()["verdict"] == "undecided"


def test_the_primary_contrast_says_which_arms_are_not_at_equal_learning() -> None:
    uneven = FOUR | {"c": arm("dense", "acft", 0.375, bleed_when_learned=0.5)}
    (found,) = [row for row in contrasts.all_contrasts(uneven) if row.claim == "H2c"]
    assert not found.matching.equal
    title = forgetting.FIGURES["bleed_when_learned"].name
    assert found.matching.texts == [
        f"{title} differs by 0.25 (limit 0.1), {pair} and dense {other}"
        for pair, other in (("dsa acft", "acft"), ("dsa sgd", "acft"), ("dense acft", "sgd"))
    ]


def test_within_the_primary_contrast_each_two_arms_are_matched() -> None:
    """Near to dsa acft all of them, and dense's two far from each other."""
    apart = FOUR | {
        "c": arm("dense", "acft", 0.375, margin_when_learned=1.125),
        "d": arm("dense", "sgd", 0.5, margin_when_learned=1.875),
    }
    (found,) = [row for row in contrasts.all_contrasts(apart) if row.claim == "H2c"]
    assert not found.matching.equal
    assert len(found.matching.texts) == 1
    assert found.matching.texts[0].endswith("dense acft and dense sgd")


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


def test_two_arms_of_one_name_are_left_out_of_contrasts() -> None:
    twice = FOUR | {"e": arm("dense", "sgd", 0.75)}
    assert matching.comparable(FOUR).left_out == []
    (reason,) = matching.comparable(twice).left_out
    assert "2 arms are dense sgd" in reason
    assert not [row for row in contrasts.all_contrasts(twice) if "dense sgd" in row.title]
    assert [row for row in contrasts.all_contrasts(twice) if row.title == "dsa acft - dsa sgd"]


@pytest.mark.parametrize("other", [{"stream": "two"}, {"seed": 1}])
def test_arms_of_other_streams_or_seeds_are_not_compared(other: dict[str, object]) -> None:
    mixed = FOUR | {"e": arm("dense", "ewc", 0.75, **other)}
    assert not contrasts.all_contrasts(mixed)
    assert len(matching.comparable(mixed).left_out) == 1

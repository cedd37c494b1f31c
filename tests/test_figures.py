"""Figures of learning, gaps, items and drift by hand, and which of them an arm may have."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored
from home import cli
from stored import item, right

from dsa_sandbox.metrics import drift, forgetting, items, single, stability_gap, stream, transfer
from dsa_sandbox.metrics.arm import COSTS, FIGURES, capped, figures_of
from dsa_sandbox.verdict import contrasts

NAN = float("nan")


# how fast tasks are learned


def check(task: int, step: int, value: float, kind: str = "stop") -> dict[str, Any]:
    parts = {"near_in": 1.0, "far_in": value, "out": 1.0, "discrimination": value}
    return {"task": task, "step": step, "loss": 1.0, kind: parts}


@pytest.mark.parametrize("kind", ["stop", "validation"])
def test_the_area_is_that_under_straight_lines_and_level_from_the_last_check_to_the_cap(
    kind: str,
) -> None:
    checks = [
        check(0, 0, 0.25, kind),
        check(0, 10, 0.5, kind),
        {"task": 0, "step": 11, "loss": 1.0},
        check(0, 20, 1.0, kind),
    ]
    (auc,) = transfer.learning_areas(checks, 1, cap=40)
    triangles = 10 * (0.25 + 0.5) / 2 + 10 * (0.5 + 1) / 2
    assert auc == pytest.approx((triangles + 20) / 40)
    assert transfer.learning_areas([check(0, 0, 1.0)], 1, cap=40) == [1.0]


def test_a_task_whose_learning_nobody_looked_at_has_no_curve() -> None:
    found = transfer.learning_areas([check(0, 0, 0.0), check(0, 5, 0.8)], 2, cap=10)
    assert math.isnan(found[1])
    figures = transfer.learning_figures(found)
    assert figures["learning_auc"] == found[0]
    assert np.isnan(list(transfer.learning_figures(found, "joint").values())).all()


def test_forward_transfer_is_a_ratio_of_means() -> None:
    assert transfer.forward_transfer([0.8, 0.9], [0.6, 0.7]) == pytest.approx(0.2 / 0.35)
    assert transfer.forward_transfer([0.8, 0.9], [0.6, NAN]) == pytest.approx(0.2 / 0.4)
    assert transfer.forward_transfer([0.9, 0.9], [0.6, 1.0]) == pytest.approx(0.1 / 0.2)
    assert math.isnan(transfer.forward_transfer([1.0], [1.0]))  # no room to gain
    assert math.isnan(transfer.forward_transfer([NAN], [0.5]))


def test_intransigence_is_what_the_reference_learns_more() -> None:
    assert transfer.intransigence([0.8, 0.6], [1.0, 0.5]) == pytest.approx((0.2 - 0.1) / 2)
    assert transfer.intransigence([0.8, NAN], [1.0, 0.5]) == pytest.approx(0.2)


# the stability gap


MATRIX = np.array([[0.0, 0, 0], [0.9, NAN, NAN], [0.6, 1.0, NAN], [0.7, 0.8, 1.0]])
DENSE: list[dict[str, Any]] = [
    {"task": 1, "at_step": 0, "seen": [0.1, 0.0]},  # before its first step: row 1 once more
    {"task": 1, "at_step": 1, "seen": [0.4, 0.2]},
    {"task": 2, "at_step": 1, "seen": [0.5, 0.3, 0.0]},
]


def test_min_acc_is_the_least_of_rows_and_dense_steps_after_a_task() -> None:
    assert stability_gap.minimum_accuracy(MATRIX, DENSE) == pytest.approx((0.4 + 0.3) / 2)
    higher = [{**line, "seen": [1.0] * len(line["seen"])} for line in DENSE]
    assert stability_gap.minimum_accuracy(MATRIX, higher) == pytest.approx((0.6 + 0.8) / 2)
    found = stability_gap.stability_figures(MATRIX, DENSE)
    assert found["wc_acc"] == pytest.approx(1 / 3 + 2 / 3 * 0.35)


def test_without_a_dense_step_there_is_no_min_acc() -> None:
    for dense in ([], [{"task": 0, "at_step": 3, "seen": [0.1]}]):
        assert np.isnan(list(stability_gap.stability_figures(MATRIX, dense).values())).all()


def test_a_task_is_not_worst_while_another_overwrites_it() -> None:
    assert stability_gap.minimum_accuracy(MATRIX, DENSE, {0: 2}) == pytest.approx((0.4 + 0.3) / 2)
    assert stability_gap.minimum_accuracy(MATRIX, DENSE, {0: 1}) == pytest.approx(0.3)


# single items


def test_transitions_do_not_cancel() -> None:
    before, after = [True, True, False, False, True], [False, True, True, False, False]
    assert items.transitions(before, after) == (2, 1)


@pytest.mark.parametrize("candidates", [2, 4])
def test_chance_alone_moves_as_many_items_as_every_pair_of_guesses_says(candidates: int) -> None:
    known = 0.3  # of the items before; all others are guessed, before and after, apart
    guesses = list(product(range(candidates), repeat=2))  # 0 is right
    moved = sum(first == 0 and second > 0 for first, second in guesses) / len(guesses)
    share = known + (1 - known) / candidates
    found = items.by_chance(share, 1 / candidates, 1 / candidates)
    assert found == pytest.approx((1 - known) * moved)


def test_known_items_are_compared_with_the_base_and_chance_is_taken_off() -> None:
    records = [
        *[item("validation_out", 0, 0, n, **right()) for n in range(4)],
        *[item("neighbour", 0, 0, n) for n in range(4)],
        *[item("validation_out", 2, 0, n, **(right() if n < 2 else {})) for n in range(4)],
        *[item("neighbour", 2, 0, n, **(right() if n < 1 else {}), kl=0.5) for n in range(4)],
        item("validation_out", 2, 0, 9),  # never asked of the base
        item("neighbour", 1, 0, 0, kl=9.0),
    ]
    found = items.item_figures(records, 2, chance=0.25)
    assert found["known_lost"] == 2 / 8
    assert found["known_gained"] == 1 / 8
    guessed = (1 - 4 / 8) * (1 - 3 / 8) / 3
    assert found["known_lost_beyond_chance"] == pytest.approx(2 / 8 - guessed)
    assert found["known_gained_beyond_chance"] == pytest.approx(1 / 8 - guessed)
    assert found["neighbour_kl"] == 0.5
    unknown = items.item_figures(records, 2)
    assert math.isnan(unknown["known_lost_beyond_chance"])
    assert unknown["known_lost"] == 2 / 8


def test_items_lost_and_gained_are_counted_from_the_row_of_their_task() -> None:
    records = [
        *[item("validation_in", 1, 0, n, exact=n < 2) for n in range(3)],
        *[item("validation_in", 2, 0, n, exact=n == 2) for n in range(3)],
        *[item("validation_in", 2, 1, n, exact=True) for n in range(3)],
    ]
    found = items.item_figures(records, 2)
    assert (found["items_lost"], found["items_gained"]) == (2, 1)


def test_leakage_asks_only_where_no_world_is_named() -> None:
    def heard(row: int, probability: float, number: int, where: str) -> dict[str, Any]:
        contrary = math.log(probability)
        return item("validation_out", row, 0, number, contrary=contrary, where=where)

    records = [heard(0, 0.1, 0, "no world"), heard(1, 0.4, 0, "no world")]
    records += [heard(0, 0.1, 1, "contrast world"), heard(1, 0.9, 1, "contrast world")]
    records += [heard(0, 0.2, 2, "real world"), heard(1, 0.3, 2, "real world")]
    assert items.leakage(records, 1) == pytest.approx((0.3 + 0.1) / 2)


def test_distances_are_told_apart_by_their_ratio() -> None:
    near = {17: 16, 22: 16, 23: 32, 60: 64, 91: 128, 319: 256, 321: 400, 1: 16, 9999: 400}
    assert {distance: items.nearest_distance(distance) for distance in near} == near
    records = [item("validation_in", 1, 0, 0, **right(d)) for d in (15, 70)]
    records += [item("validation_in", 1, 0, 1, tokens=66), item("validation_in", 1, 0, 2)]
    assert items.right_by_distance(records) == {16: 1.0, 64: 0.5}


# drift


def test_what_pre_training_won_is_measured_from_the_unigram() -> None:
    first = {"base_nll": 1.0, "unigram_nll": 5.0}
    assert drift.fraction_lost(first, {"base_nll": 2.0}) == 0.25
    assert math.isnan(drift.fraction_lost({"base_nll": 1.0}, {"base_nll": 2.0}))
    assert math.isnan(drift.fraction_lost(first | {"unigram_nll": 0.5}, {"base_nll": 2.0}))


def test_recovery_is_the_mean_over_tasks_at_each_number_of_steps() -> None:
    rows = [
        {"task": t, "steps": k, "right": r} for t, k, r in ((0, 0, 0.2), (1, 0, 0.4), (0, 5, 1))
    ]
    assert drift.recovery({"recovery": rows}) == pytest.approx({0: 0.3, 5: 1.0})
    assert drift.recovery({}) == {}


def test_retention_by_lag_is_the_mean_of_a_diagonal() -> None:
    rng = np.random.default_rng(0)
    matrix = np.where(np.tri(6, 5, -1) > 0, rng.random((6, 5)), NAN)
    brute = [
        np.mean([matrix[t, j] for t in range(1, 6) for j in range(t) if t - (j + 1) == lag])
        for lag in range(5)
    ]
    assert forgetting.retention_by_lag(matrix) == pytest.approx(brute)


# whole arms


def finite(figures: dict[str, Any]) -> set[str]:
    return {key for key in FIGURES if not math.isnan(figures[key])}


ALONE = {"fwt", "intransigence", "intransigence_joint", "pronoun"}  # null in every row
OF_SINGLE_TASKS = single.FIGURES.keys() - {"placebo_damage", "placebo_share"}


def test_a_stream_has_every_figure_of_streams_and_a_cheap_one_those_that_it_stored(
    tmp_path: Path,
) -> None:
    streams = FIGURES.keys() - single.FIGURES.keys()
    assert finite(figures_of(stored.arm(tmp_path, "sgd"))) == streams - ALONE
    cheap = figures_of(stored.arm(tmp_path, "ewc", full=False))
    absent = stability_gap.FIGURES.keys() | drift.FIGURES.keys() | {"heldout_kl", *ALONE}
    chance = {"known_lost_beyond_chance", "known_gained_beyond_chance"}
    assert finite(cheap) == streams - absent - chance


TOLD_OF_TASKS = {  # figures of tasks right after each was learned
    *("efficacy", "bleed_when_learned", "generality", "steps", "learning_auc", *COSTS),
    *(f"own_{part}" for part in (*stream.PARTS, "transfer")),
}


def test_single_tasks_have_figures_at_the_level_and_none_of_a_sequence(tmp_path: Path) -> None:
    found = figures_of(stored.single(tmp_path))
    assert finite(found) == OF_SINGLE_TASKS | TOLD_OF_TASKS
    assert found["diverged_after"] is None


def test_items_that_a_users_rows_leave_out_are_absent_figures_not_errors(tmp_path: Path) -> None:
    run = stored.arm(tmp_path, "sgd")
    for kinds, absent in (
        ({"validation_in", "neighbour"}, {"lost", "own_discrimination", "own_out", "generality"}),
        ({"transfer_out"}, {"lost", "efficacy", "final_exact_match", "forgetting", "specificity"}),
    ):
        kept = [row for row in stored.records("sequential") if row["kind"] in kinds]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (run.path / "records.jsonl").write_text(text, "utf-8")
        found = figures_of(run)
        assert not finite(found) & absent
        assert found["drift"] == pytest.approx(0.25)


def test_without_far_items_the_near_ones_count(tmp_path: Path) -> None:
    run = stored.arm(tmp_path, "sgd")
    kept = [row for row in stored.records("sequential") if row["distance"] != "far"]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (run.path / "records.jsonl").write_text(text, "utf-8")
    found = figures_of(run)
    assert math.isnan(found["own_far_in"])
    assert found["own_discrimination"] == found["own_near_in"] == pytest.approx(0.9)


@pytest.mark.parametrize("schema", [None, 1])
def test_an_arm_of_an_older_version_is_refused_in_a_line_that_says_what_to_do(
    schema: int | None, tmp_path: Path
) -> None:
    runs = [stored.arm(tmp_path, strategy) for strategy in ("sgd", "ewc")]
    for run in runs:
        manifest = json.loads((run.path / "manifest.json").read_text("utf-8"))
        del manifest["schema"]
        manifest |= {} if schema is None else {"schema": schema}
        (run.path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    for command in (["eval"], ["plot"], ["plot", "--kind", "matched"], ["eval", runs[0].name]):
        (line,) = cli(*command, "--home", tmp_path).problem.splitlines()
        assert "made by an older version" in line
        assert "fine-tune again" in line
    listed = cli("ls", "--json", "--home", tmp_path).value["rows"]
    assert {row["run"] for row in listed} == {run.name for run in runs}
    assert {row["state"] for row in listed} == {"finished"}


def test_figures_of_a_stored_arm_by_hand(tmp_path: Path) -> None:
    found = figures_of(stored.arm(tmp_path, "sgd", fall=0.2))
    expected = {
        "heldout_dnll": 0.6,
        "fraction_lost": 0.6 / 3,
        "learning_auc": (10 * 0.25 + 10 * 0.625 + 20 * 0.75) / 40,
        "forgetting": 0.5,
        "items_lost": 2,
        "min_acc": 0.25,
        "wc_acc": 1 / 3 + 2 / 3 * 0.25,
        "known_lost": 0.5,
        "known_lost_beyond_chance": 0.5,  # all was right before: nothing was guessed
        "leakage": 0,
        "neighbour_kl": 0.75,
        "jaccard": (0.7 + 0.4) / 2,
        "hit_rate": (0.2 + 0.4) / 2,
        "pairs_fall": 0.15,
        "recall_fall": 0.3,
        "recovered": 1.0,
        "judge_nll": 4.5,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    layers = {"before": [0.1, 0.2], "after": [0.2, 0.4], "chance": 0.2}
    assert {k: pytest.approx(v) for k, v in layers.items()} == found["hits_by_layer"]
    assert found["by_lag"] == [1.0, 0.5, 0.5]
    assert found["by_distance"]["validation_in"] == {
        "own": {16: 1.0, 64: 1.0},
        "end": {16: 1.0, 64: 1 / 3},
    }


def test_tasks_learned_apart_have_no_figure_of_the_end(tmp_path: Path) -> None:
    found = figures_of(stored.arm(tmp_path, "independent", protocol="independent"))
    assert finite(found) == {"learned", "overshoot", "hit_rate"} | TOLD_OF_TASKS
    assert found["by_task"]["exact_match_when_learned"] == [1.0, 1.0, 1.0]
    assert found["moved"] == {}


def test_tasks_learned_together_have_no_figure_of_a_sequence(tmp_path: Path) -> None:
    found = figures_of(stored.arm(tmp_path, "joint", protocol="joint"))
    assert {
        "heldout_dnll",
        "final_exact_match",
        "efficacy",
        "generality",
        "own_discrimination",
        "end_discrimination",
        "final_bleed",
    } <= finite(found)
    sequence = {k for k, figure in FIGURES.items() if figure.needs == "sequential"}
    assert not finite(found) & (sequence | {"learning_auc"})
    assert (found["final_exact_match"], found["efficacy"]) == (1.0, 1.0)
    assert found["by_task"]["exact_match_when_learned"] == [1.0, 1.0, 1.0]


def test_capped_tasks_are_those_that_ended_below_the_level() -> None:
    lines = [{"row": 0}, {"row": 1, "learned": True, "capped": False}]
    lines += [{"row": 2, "learned": False, "capped": True}]
    assert capped(lines, "sequential") == capped(lines, "independent") == 1
    assert capped([{"row": 0}, {"row": 1, "learned": False}], "none") == 0
    assert capped([{"row": 0}, {"row": 50, "learned": 0.94, "capped": True}], "joint") == 3
    fixed = {"row": 1, "learned": False, "capped": False}  # after fixed steps
    assert capped([{"row": 0}, fixed], "sequential") == 0


def test_a_task_that_is_turned_around_is_not_forgotten(tmp_path: Path) -> None:
    plain = figures_of(stored.arm(tmp_path, "sgd"))
    turned = figures_of(stored.arm(tmp_path, "ewc", undoes={2: "t0"}))  # t2 undoes t0
    assert plain["final_exact_match"] == pytest.approx(2 / 3)
    assert turned["final_exact_match"] == pytest.approx((0.5 + 1.0) / 2)
    assert turned["items_lost"] == 1
    assert turned["aaa"] == pytest.approx((1 + 0.75 + 0.75) / 3)
    assert turned["by_lag"] == [1.0, 0.5, pytest.approx(NAN, nan_ok=True)]
    assert not math.isnan(turned["log_odds_fall"])
    assert turned["end_discrimination"] == pytest.approx((0.2 + 0.8) / 2)  # without t0
    assert turned["lost"] == pytest.approx(0.6)


# arms beside each other


def test_bounds_give_transfer_and_intransigence_to_the_others(tmp_path: Path) -> None:
    runs = [
        stored.arm(tmp_path, "sgd"),
        stored.arm(tmp_path, "independent", protocol="independent"),
        stored.arm(tmp_path, "joint", protocol="joint"),
        stored.arm(tmp_path, "sgd", arch="dense"),
    ]
    found = transfer.against({run.name: figures_of(run) for run in runs})
    sgd, independent, joint, dense = (found[run.name] for run in runs)
    assert (sgd["fwt"], sgd["intransigence"], sgd["intransigence_joint"]) == (0, 0, 0)
    for arm in (independent, joint, dense):  # the other architecture has no bounds here
        assert all(math.isnan(arm[key]) for key in ("fwt", "intransigence", "intransigence_joint"))


TERMS = {"finetune.optimizer": "adamw", "finetune.max_steps": 40}


def bound(strategy: str, auc: float, **more: Any) -> dict[str, Any]:
    same = {"arch": "dsa", "seed": 0, "stream": "s", "base": ["b"], "terms": TERMS}
    values = {"protocol": "independent", "strategy": strategy}
    return (
        same
        | values
        | {"by_task": {"learning_auc": [auc], "exact_match_when_learned": [1.0]}}
        | more
    )


def test_the_bound_under_the_arms_own_mask_is_the_nearer_one() -> None:
    arm = bound("acft+ewc", 0.75, protocol="sequential")
    results = {"arm": arm, "any": bound("independent", 0.5), "own": bound("acft+independent", 0.25)}
    assert transfer.against(results)["arm"]["fwt"] == pytest.approx(0.5 / 0.75)
    results["arm"] = arm | {"strategy": "ewc"}
    assert transfer.against(results)["arm"]["fwt"] == pytest.approx(0.25 / 0.5)
    results["twice"] = bound("independent", 0.5)
    assert "fwt" not in transfer.against(results)["arm"]  # two fit alike


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"stream": "t"},
        {"base": ["c"]},
        {"terms": TERMS | {"finetune.optimizer": "sgd"}},
        {"terms": TERMS | {"finetune.max_steps": 9}},
    ],
)
def test_a_bound_of_another_study_is_no_reference(other: dict[str, Any]) -> None:
    results = {
        "arm": bound("sgd", 0.75, protocol="sequential"),
        "far": bound("independent", 0.5) | other,
    }
    found = transfer.against(results)["arm"]
    assert "fwt" not in found
    assert "intransigence" not in found


def test_contrasts_of_masks_and_of_practice_are_planned() -> None:
    rules = ("sgd", "ewc", "acft", "random-mask", "acft+ewc", "lora", "wise")
    at_hand = [(arch, rule) for arch in ("dense", "dsa") for rule in rules]
    found = [(claim, " ".join(a), " ".join(b)) for claim, a, b in contrasts.planned(at_hand)]
    for arch in ("dense", "dsa"):
        assert ("H2b", f"{arch} acft", f"{arch} sgd") in found
        assert ("H2b", f"{arch} acft", f"{arch} random-mask") in found
        assert ("H2b", f"{arch} acft+ewc", f"{arch} ewc") in found  # the same rule, no mask
        assert ("H2e", "dsa acft", f"{arch} lora") in found
        assert ("H2e", "dsa acft", f"{arch} wise") in found
    assert ("H2a", "dsa acft+ewc", "dense acft+ewc") in found
    assert len(found) == len(set(found)) == 2 + len(rules) + 2 * 3 + 2 * 2


def test_bounds_are_in_no_contrast(tmp_path: Path) -> None:
    runs = [
        stored.arm(tmp_path, strategy, arch=arch, protocol=protocol)
        for arch in ("dense", "dsa")
        for strategy, protocol in (
            ("acft" if arch == "dsa" else "sgd", "sequential"),
            ("none", "none"),
            ("joint", "joint"),
        )
    ]
    results = {run.name: figures_of(run) for run in runs}
    found = [row.title for row in contrasts.all_contrasts(results)]
    assert found == ["dsa acft - dense sgd"]

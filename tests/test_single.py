"""Damage of single tasks at matched learning, against trajectories written by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored

from dsa_sandbox.metrics import arm, placebo, single
from dsa_sandbox.metrics.single import Measurement

NAN = float("nan")


def trajectory(*values: float, dnll: float = 0.01) -> list[Measurement]:
    """Discrimination every 4 steps; dNLL rises by `dnll` nats a step."""
    return [
        Measurement(4 * n, stored.parts(value), 4 * n * dnll, value / 2, value / 4)
        for n, value in enumerate(values)
    ]


def damage(points: list[Measurement], level: float) -> float | None:
    found = single.at_level(points, level)
    return None if found is None else found.damage


def test_figures_at_a_level_are_interpolated_between_the_two_measurements_around_it() -> None:
    found = single.at_level(trajectory(0.0, 0.2, 0.6, 0.9), 0.7)
    assert found is not None
    share = (0.7 - 0.6) / (0.9 - 0.6)
    assert (found.place.before, found.place.after) == (8, 12)
    assert found.place.share == pytest.approx(share)
    assert found.steps == pytest.approx(8 + 4 * share)
    assert found.damage == pytest.approx(0.08 + 0.04 * share)
    assert found.far_in == pytest.approx(0.7)
    assert found.near_in == pytest.approx(0.7 + share * 0.3)
    assert found.out == 1.0
    assert found.stop_items == pytest.approx(0.35)
    assert found.transfer == pytest.approx(0.175)


def test_a_straight_rise_has_the_damage_of_its_closed_form() -> None:
    points = trajectory(*np.linspace(0, 1, 26), dnll=0.003)  # discrimination = step / 100
    for level in (0.5, 0.57, 0.7, 0.9, 1.0):
        assert damage(points, level) == pytest.approx(0.3 * level)


def test_noise_is_pooled_before_the_level_is_looked_for() -> None:
    values = [0.0, 0.5, 0.8, 0.6, 0.9]  # .8 and .6 are pooled to .7
    assert damage(trajectory(*values), 0.7) == pytest.approx(0.08)
    assert damage(trajectory(*values), 0.8) == pytest.approx(0.12 + 0.04 / 2)
    plateau = [0.0, 0.4, *[0.82, 0.72] * 6]  # about .77, and twice as often above .8 at once
    assert damage(trajectory(*plateau), 0.8) is None
    assert damage(trajectory(*plateau), 0.7) is not None


def test_a_level_that_is_there_at_step_0_costs_nothing() -> None:
    found = single.at_level(trajectory(0.75, 0.2, 0.3, 0.9), 0.7)
    assert found is not None
    assert (found.damage, found.steps, found.far_in) == (0.0, 0.0, 0.75)


def test_a_level_that_is_never_there_is_not_reached() -> None:
    assert damage(trajectory(0.0, 0.3, 0.69, 0.69), 0.7) is None
    assert damage([], 0.7) is None


@pytest.mark.parametrize("place", [1, 2])
def test_a_level_reached_where_the_loss_is_not_finite_is_not_reached(place: int) -> None:
    points = trajectory(0.0, 0.6, 0.8)
    points[place] = points[place]._replace(dnll=math.inf)
    assert damage(points, 0.7) is None
    assert (damage(points, 0.5) is None) == (place == 1)


def test_without_near_items_the_level_is_where_far_items_and_those_outside_reach_it() -> None:
    # near items lag behind: far-in is at .7 at step 8, near-in not before step 16
    near, far = (0.0, 0.1, 0.3, 0.5, 0.9), (0.0, 0.4, 0.7, 0.8, 0.9)
    points = []
    for place, (low, high) in enumerate(zip(near, far)):
        parts = {"near_in": low, "far_in": high, "out": 1.0, "discrimination": low}
        scored = place in (0, 3, 4)  # where the discrimination of all items reaches a level
        points.append(Measurement(4 * place, parts, 0.01 * 4 * place if scored else NAN))
    assert single.far_damage(points, 0.7) == pytest.approx(0.08)  # between steps 0 and 12
    assert single.far_damage(points, 0.55) == pytest.approx(0.06)
    assert single.far_damage(points, 0.95) == math.inf
    assert single.far_damage(points, 0.85) == pytest.approx(0.14)
    wild = [*points[:3], points[3]._replace(dnll=math.inf), points[4]]
    assert single.far_damage(wild, 0.7) == math.inf
    no_far = [points[0]._replace(validation={"near_in": 0.0, "far_in": None, "out": 1.0})]
    assert math.isnan(single.far_damage(no_far, 0.7))


def test_the_median_counts_a_task_that_is_not_reached_as_infinite() -> None:
    assert single.median([1.0, 3.0, 2.0]) == 2.0
    assert single.median([1.0, 2.0], missing=1) == 2.0
    assert single.median([1.0, 2.0, 3.0], missing=1) == 2.5
    assert math.isnan(single.median([1.0, 2.0], missing=2))  # half of them
    assert math.isnan(single.median([1.0], missing=2))
    assert math.isnan(single.median([]))
    assert math.isnan(single.median([1.0, NAN, 3.0]))  # one was not measured


def test_a_median_with_half_of_the_tasks_missing_is_not_reached_and_one_more_is() -> None:
    there, never = single.at_level(trajectory(0.0, 0.9), 0.7), None
    for tasks, reached in (([there, never], 0.5), ([there, there, never], 2 / 3)):
        found = single.level_figures(tasks)
        assert found["reached"] == reached
        assert single.not_reached(found) == (reached == 0.5)
        assert math.isnan(found["damage"]) == (reached == 0.5)
        assert found["far_in"] == pytest.approx(0.7)  # of those that reach it
    assert not single.not_reached(single.level_figures([]))  # nothing was measured


def test_tokens_to_a_level_are_summed_over_steps_and_interpolated_within_the_last_ones() -> None:
    rows: list[dict[str, Any]] = [{"row": 0, "base_nll": 1.0}]
    for task in (0, 1):
        rows.append({"task": task, "step": 0, "validation": stored.parts(0.0)})
        rows += [
            {"task": task, "step": step, "loss": 1.0, "tokens": 10 * step} for step in range(1, 5)
        ]
        rows.append({"task": task, "step": 4, "validation": stored.parts(0.8)})
        rows += [{"task": task, "at": at, "base_nll": 1.0 + at / 100} for at in (0, 4)]
    for task in (0, 1):
        found = single.at_level(single.trajectory(rows, task), 0.6)
        assert found is not None
        assert found.tokens == pytest.approx(0.75 * (10 + 20 + 30 + 40))
    older = [{key: value for key, value in row.items() if key != "tokens"} for row in rows]
    found = single.at_level(single.trajectory(older, 0), 0.6)
    assert found is not None
    assert math.isnan(found.tokens)  # arms of before did not count them
    assert found.damage == pytest.approx(0.03)


def test_figures_of_a_stored_arm_are_medians_over_its_tasks(tmp_path: Path) -> None:
    found = arm.figures_of(stored.single(tmp_path))
    steps = {0.7: [8 + 4 / 2, 4 + 4 * 3 / 4, 8.0], 0.8: [12.0, 8.0]}
    assert found["level_steps"] == pytest.approx(sorted(steps[0.7])[1])
    assert found["damage"] == pytest.approx(0.01 * found["level_steps"])
    assert found["reached"] == 1.0
    assert found["by_level"]["0.8"]["reached"] == pytest.approx(2 / 3)
    assert found["by_level"]["0.8"]["damage"] == pytest.approx(0.12)  # the larger of two and inf
    assert math.isnan(found["by_level"]["0.9"]["damage"])
    assert found["by_level"]["0.9"]["reached"] == pytest.approx(1 / 3)
    assert single.per_task(found, 0.7).tolist() == pytest.approx([0.1, 0.07, 0.08])
    assert single.per_task(found, 0.9).tolist() == pytest.approx([0.145, math.inf, math.inf])
    assert list(found["by_level"]) == ["0.5", "0.6", "0.7", "0.8", "0.9"]


def without(rows: list[dict[str, Any]], task: int) -> list[dict[str, Any]]:
    """The lines of an arm, as if a task had no items outside its world."""
    absent = {"near_in": 0.5, "far_in": 0.5, "out": None, "discrimination": None}
    return [
        row | {"validation": absent} if row.get("task") == task and "validation" in row else row
        for row in rows
    ]


def test_a_task_without_items_of_a_side_is_left_out(tmp_path: Path) -> None:
    rows = stored.single(tmp_path).rows("metrics.jsonl")
    found = single.single_figures(without(rows, 1), 3, 0.7)
    assert found["reached"] == 1.0
    assert found["damage"] == pytest.approx((0.1 + 0.08) / 2)
    assert math.isnan(single.per_task(found, 0.7)[1])
    for task in range(3):
        rows = without(rows, task)
    nothing = single.single_figures(rows, 3, 0.7)
    assert math.isnan(nothing["reached"])
    assert not single.not_reached(nothing)


def test_a_level_at_which_held_out_text_was_not_scored_has_steps_but_no_damage(
    tmp_path: Path,
) -> None:
    values = [0.0, 0.3, 0.48, 0.49, 0.7, 0.95]
    rows = stored.single(tmp_path, trajectories=[values] * 3).rows("metrics.jsonl")
    found = single.single_figures(rows, 3, 0.4)  # between the second and the third measurement
    assert found["level_steps"] == pytest.approx(4 + 4 * (0.4 - 0.3) / 0.18)
    assert math.isnan(found["damage"])
    assert not single.not_reached(found)


def test_the_base_is_undamaged_whether_or_not_it_was_scored_again(tmp_path: Path) -> None:
    rows = stored.single(tmp_path).rows("metrics.jsonl")
    fewer = [row for row in rows if row.get("at") != 0]
    assert len(fewer) < len(rows)
    for level in (0.5, 0.7):
        ours, theirs = (single.single_figures(lines, 3, level) for lines in (rows, fewer))
        assert ours["damage"] == theirs["damage"]


# placebo


def test_the_placebo_is_read_at_the_steps_of_its_arm(tmp_path: Path) -> None:
    runs = [stored.single(tmp_path), stored.single(tmp_path, fall=0.004, placebo=True)]
    results = arm.together({run.name: arm.figures_of(run) for run in runs})
    ours, placebo = (results[run.name] for run in runs)
    assert ours["damage"] == pytest.approx(0.08)
    assert ours["placebo_damage"] == pytest.approx(0.4 * 0.08)
    assert ours["placebo_share"] == pytest.approx(0.4)
    assert ours["by_level"]["0.8"]["placebo_damage"] == pytest.approx(0.4 * 0.12)
    assert math.isnan(ours["by_level"]["0.9"]["placebo_damage"])  # as the damage itself
    assert placebo["placebo_of"] == runs[0].name
    assert math.isnan(placebo["reached"])


def test_a_placebo_of_fewer_tasks_is_read_at_the_tasks_that_it_has(tmp_path: Path) -> None:
    ours = arm.figures_of(stored.single(tmp_path))
    theirs = arm.figures_of(stored.single(tmp_path, fall=0.004, placebo=True))
    whole = placebo.per_task(ours, theirs, "0.7")
    assert len(whole) == len(ours["trajectories"])
    fewer = theirs | {"trajectories": theirs["trajectories"][:2]}
    assert placebo.per_task(ours, fewer, "0.7").tolist() == whole[:2].tolist()


def test_a_placebo_belongs_to_the_arm_that_it_took_its_steps_from(tmp_path: Path) -> None:
    runs = [stored.single(tmp_path, name) for name in ("sgd", "ewc")]
    runs.append(stored.single(tmp_path, "ewc", placebo=True))
    results = arm.together({run.name: arm.figures_of(run) for run in runs})
    sgd, ewc, _ = (results[run.name] for run in runs)
    assert math.isnan(sgd["placebo_share"])
    assert ewc["placebo_share"] == pytest.approx(1.0)
    alone = arm.together({runs[2].name: arm.figures_of(runs[2])})[runs[2].name]
    assert "placebo_of" not in alone


def test_no_damage_has_no_share(tmp_path: Path) -> None:
    runs = [stored.single(tmp_path, fall=-0.01), stored.single(tmp_path, placebo=True)]
    results = arm.together({run.name: arm.figures_of(run) for run in runs})
    assert results[runs[0].name]["placebo_damage"] == pytest.approx(0.08)
    assert math.isnan(results[runs[0].name]["placebo_share"])


def test_the_placebos_share_of_a_stream_is_that_of_drift(tmp_path: Path) -> None:
    runs = [stored.arm(tmp_path, fall=0.2), stored.arm(tmp_path, fall=0.05, placebo=True)]
    results = arm.together({run.name: arm.figures_of(run) for run in runs})
    assert results[runs[0].name]["placebo_share"] == pytest.approx(0.25)


def test_the_share_of_a_placebo_is_that_of_the_tasks_that_it_has() -> None:
    def task(damage: float, dnll: dict[int, float]) -> dict[str, Any]:
        place = {"from_step": 0, "to_step": 4, "share": 1.0}
        return {"levels": {"0.7": {"damage": damage, "place": place}}, "dnll": dnll}

    arm = {"experiment": "single", "level": 0.7, "by_level": {"0.7": {"damage": 0.3}}}
    arm["trajectories"] = [task(damage, {}) for damage in (0.1, 0.3, 0.5)]
    for count, expected in ((1, 0.05 / 0.1), (2, 0.05 / 0.2), (3, 0.05 / 0.3)):
        told = {"trajectories": [task(0.0, {0: 0.0, 4: 0.05})] * count}
        found = placebo.beside(dict(arm), told)
        assert found["placebo_damage"] == pytest.approx(0.05)
        assert found["placebo_share"] == pytest.approx(expected)

"""When a task ends: at the level by bisection, at the cap, along a trajectory, as another arm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.metrics.discrimination import Parts
from dsa_sandbox.training.schedules import AsArm, FixedSteps, Schedule, Trajectory, UntilLevel


class Toy:
    """Stands in for a trainer: one weight that moves by what each step adds, and a frozen one."""

    def __init__(self, moves: Callable[[int], float]) -> None:
        self.moves = moves
        self.weights = {"w": torch.zeros(2, dtype=torch.float64)}
        self.weights["w"][1] = 0.1  # an entry that no step changes
        self.reads = 0

    @property
    def value(self) -> float:
        return float(self.weights["w"][0])

    def snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.weights.items()}

    def put(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)

    def put_between(self, low: dict[str, Tensor], high: dict[str, Tensor], share: float) -> None:
        for name in low:
            self.weights[name].copy_(torch.lerp(low[name], high[name], share))

    def read(self) -> Parts:
        self.reads += 1
        return Parts(self.value, self.value, 1.0)


def run(toy: Toy, schedule: Schedule, start: int = 0) -> int:
    """Steps until the schedule is done; the number of the last one."""
    if start == 0:
        schedule.begin()
    step = start
    while not schedule.done:
        step += 1
        toy.weights["w"][0] += toy.moves(step)
        schedule.after(step)
    return step


def until(toy: Toy, **plan: Any) -> UntilLevel:
    settings = Finetune(**plan)
    return UntilLevel(toy, settings, lambda: [toy.read()])  # type: ignore[arg-type]


def test_the_last_interval_is_bisected_to_a_32nd_of_its_move() -> None:
    toy = Toy(lambda step: 0.11)
    schedule = until(toy, level=0.7)
    assert run(toy, schedule) == 8  # checks at 4 (.44) and 8 (.88)
    line = schedule.finish()
    assert 0.7 <= toy.value < 0.7 + 0.44 / 32 + 1e-12
    assert line["learned"] is True
    assert line["capped"] is False
    assert line["overshoot"] == pytest.approx(toy.value - 0.7)
    assert toy.weights["w"][1] == 0.1  # bit-equal, at any share


def test_each_step_is_checked_once_the_level_is_near() -> None:
    toy = Toy(lambda step: 0.05)
    schedule = until(toy, level=0.7)
    run(toy, schedule)
    assert [step for step, _ in schedule.checks] == [0, 4, 8, 12, 13, 14]


def test_a_task_at_the_level_takes_no_step() -> None:
    toy = Toy(lambda step: 0.0)
    toy.weights["w"][0] = 0.7
    schedule = until(toy, level=0.7)
    assert run(toy, schedule) == 0
    assert schedule.finish()["learned"] is True
    assert toy.value == 0.7


def test_a_jump_over_the_level_stops_within_a_32nd() -> None:
    toy = Toy(lambda step: 0.9 if step == 3 else 0.0)
    schedule = until(toy, level=0.7)
    assert run(toy, schedule) == 4
    line = schedule.finish()
    assert line["from_step"] == 0
    assert line["bisected"] == 25 / 32
    assert toy.value == pytest.approx(0.9 * 25 / 32)


def test_60_steps_without_a_new_best_end_a_task_at_its_best_weights() -> None:
    toy = Toy(lambda step: 0.1 if step <= 6 else -0.001)
    schedule = until(toy, level=0.7)
    # .596 at step 8 is the best, after .4 at step 4; the level - .1 is never reached
    assert run(toy, schedule) == 68
    line = schedule.finish()
    assert line == line | {"learned": False, "capped": True, "best_step": 8}
    assert toy.value == pytest.approx(0.598)
    assert line["stop"]["discrimination"] == pytest.approx(0.598)


def test_the_cap_keeps_the_best_weights_too() -> None:
    toy = Toy(lambda step: 0.02 if step % 2 else -0.01)
    schedule = until(toy, level=0.7, max_steps=30)
    assert run(toy, schedule) == 30
    assert schedule.finish()["capped"] is True
    assert toy.value == pytest.approx(0.15)


def test_a_task_goes_on_as_if_it_had_not_been_interrupted() -> None:
    def moves(step: int) -> float:
        return 0.03 + 0.02 * (step % 3)

    whole = Toy(moves)
    schedule = until(whole, level=0.7)
    last = run(whole, schedule)
    wanted = schedule.finish(), whole.value
    for stopped_at in range(1, last):
        first, second = Toy(moves), Toy(moves)
        half = until(first, level=0.7)
        half.begin()
        for step in range(1, stopped_at + 1):
            first.weights["w"][0] += moves(step)
            half.after(step)
        second.put(first.snapshot())
        rest = until(second, level=0.7)
        rest.restore(half.state(), half.tensors())
        assert run(second, rest, start=stopped_at) == last
        assert (rest.finish(), second.value) == wanted


def test_several_tasks_at_once_end_where_the_least_is_at_the_level() -> None:
    toy = Toy(lambda step: 0.02)
    lag = [0.0, 0.1]

    def read() -> list[Parts]:
        return [Parts(toy.value - less, toy.value, 1.0) for less in lag]

    plan = Finetune(level=0.7, max_steps=40)
    schedule = UntilLevel(toy, plan, read, num_tasks=2)  # type: ignore[arg-type]
    assert run(toy, schedule) == 40
    line = schedule.finish()
    assert line["learned"] == 1
    assert toy.value == pytest.approx(0.8, abs=0.01)
    short = UntilLevel(Toy(lambda step: 0.0), plan, read, num_tasks=2)  # type: ignore[arg-type]
    toy.weights["w"][0] = 0.75
    short.begin()
    assert short.finish()["learned"] == 0.5


def test_fixed_steps_read_the_items_once() -> None:
    toy = Toy(lambda step: 0.1)
    schedule = FixedSteps(toy, 5, lambda: [toy.read()], 0.7)  # type: ignore[arg-type]
    assert run(toy, schedule) == 5
    line = schedule.finish()
    assert toy.reads == 1
    assert line["learned"] is False
    assert line["stop"]["near_in"] == pytest.approx(0.5)


def test_whether_a_task_is_learned_is_absent_without_stop_items() -> None:
    toy = Toy(lambda step: 0.1)
    nothing = Parts(float("nan"), float("nan"), float("nan"))
    schedule = FixedSteps(toy, 2, lambda: [nothing], 0.7)  # type: ignore[arg-type]
    run(toy, schedule)
    assert schedule.finish() == {"capped": False}


def trajectory(toy: Toy, **plan: Any) -> Trajectory:
    return Trajectory(toy, Finetune(**plan), toy.read, lambda: {"base_nll": toy.value})  # type: ignore[arg-type]


def test_a_trajectory_measures_more_only_where_a_level_is_crossed() -> None:
    toy = Toy(lambda step: 0.02)
    schedule = trajectory(toy)
    assert run(toy, schedule) == 48  # .96 is enough
    line = schedule.finish()
    assert line == {"learned": True, "capped": False}
    found = list(schedule.lines())
    # .5 between 24 and 28 (.48, .56), .6 28 and 32, .7 32 and 36, .8 at 40, .9 44 and 48
    assert [row["at"] for row in found] == [24, 28, 32, 36, 40, 44, 48]
    assert [row["base_nll"] for row in found] == pytest.approx([0.02 * r["at"] for r in found])
    assert toy.value == pytest.approx(0.96)  # measuring leaves the weights as they were


def test_a_checkpoint_inside_a_trajectory_changes_nothing() -> None:
    def moves(step: int) -> float:
        return 0.04 if step % 5 else -0.06  # back and forth, so that crossings move

    whole = Toy(moves)
    schedule = trajectory(whole)
    last = run(whole, schedule)
    wanted = schedule.finish(), list(schedule.lines())
    assert len(wanted[1]) > 4
    for stopped_at in range(1, last):
        first, second = Toy(moves), Toy(moves)
        half = trajectory(first)
        half.begin()
        for step in range(1, stopped_at + 1):
            first.weights["w"][0] += moves(step)
            half.after(step)
        state = half.state()
        second.put(first.snapshot())
        rest = trajectory(second)
        rest.restore(state, half.tensors())
        assert run(second, rest, start=stopped_at) == last
        assert (rest.finish(), list(rest.lines())) == wanted


def test_weights_are_measured_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(lambda step: 0.02)
    monkeypatch.setattr("dsa_sandbox.training.schedules.MAX_BYTES", 40)  # two snapshots of 16
    schedule = trajectory(toy)
    run(toy, schedule)
    assert len(schedule.weights) <= 2
    schedule.finish()
    assert [row["at"] for row in schedule.lines()] == [24, 28, 32, 36, 40, 44, 48]


def test_a_trajectory_without_a_new_best_ends_after_60_steps() -> None:
    toy = Toy(lambda step: 0.1 if step <= 4 else -0.001)
    schedule = trajectory(toy)
    assert run(toy, schedule) == 64
    assert schedule.finish() == {"learned": False, "capped": False}
    assert list(schedule.lines()) == []


def test_a_placebo_stands_where_the_arm_stood() -> None:
    toy = Toy(lambda step: 0.1)
    plan = {"steps": 6, "at": [2, 4], "from_step": 5, "bisected": 0.25}
    schedule = AsArm(toy, plan, lambda: {"base_nll": toy.value})  # type: ignore[arg-type]
    assert run(toy, schedule) == 6
    assert schedule.finish() == {"capped": False}
    assert [row["at"] for row in schedule.lines()] == [2, 4]
    assert [row["base_nll"] for row in schedule.lines()] == pytest.approx([0.2, 0.4])
    assert toy.value == pytest.approx(0.525)

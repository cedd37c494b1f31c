"""Damage at matched learning: the isotonic fit, and where it first reaches a level."""

import random

import numpy as np
import pytest

from dsa_sandbox.metrics import damage
from dsa_sandbox.metrics.isotonic import isotonic


def by_minima(values: list[float]) -> list[float]:
    """The isotonic fit by its closed form: max over starts of min over ends of means."""
    size = len(values)
    return [
        max(
            min(float(np.mean(values[start : end + 1])) for end in range(i, size))
            for start in range(i + 1)
        )
        for i in range(size)
    ]


def trajectories(number: int, longest: int = 12) -> list[list[float]]:
    """Rising, noisy trajectories of several lengths, with ties."""
    rng = random.Random(0)
    found = []
    for _ in range(number):
        rise = rng.choice((0.02, 0.1, 0.3))
        noise = rng.choice((0.0, 0.1, 0.4))
        values = [
            round(min(max(rise * i + rng.uniform(-noise, noise), 0), 1), rng.choice((1, 3)))
            for i in range(rng.randint(1, longest))
        ]
        found.append(values)
    return found


def test_the_fit_equals_the_closed_form() -> None:
    for values in trajectories(300):
        assert isotonic(values) == pytest.approx(by_minima(values))


def test_the_fit_of_a_rising_sequence_is_the_sequence_and_of_a_falling_one_its_mean() -> None:
    assert list(isotonic([0.1, 0.1, 0.5, 0.9])) == [0.1, 0.1, 0.5, 0.9]
    assert list(isotonic([3.0, 2.0, 1.0])) == [2.0, 2.0, 2.0]
    assert list(isotonic([])) == []


def test_no_monotone_sequence_on_a_grid_is_nearer_than_the_fit() -> None:
    values, grid = [0.4, 0.1, 0.8, 0.5], np.linspace(0, 1, 11)
    least = min(
        sum((a - b) ** 2 for a, b in zip(values, one))
        for one in np.array(np.meshgrid(*[grid] * 4)).reshape(4, -1).T
        if (np.diff(one) >= 0).all()
    )
    ours = float(((isotonic(values) - values) ** 2).sum())
    assert ours == pytest.approx(0.3**2 / 2 + 0.3**2 / 2)
    assert ours <= least


def test_a_level_between_two_measurements_is_crossed_in_proportion() -> None:
    found = damage.crossing([0.0, 0.2, 0.6, 0.9], 0.5)
    assert found is not None
    assert (found.before, found.after) == (1, 2)
    assert found.share == pytest.approx(0.75)
    assert found.between(0.1, 0.5) == pytest.approx(0.4)


def test_a_level_reached_before_the_first_step_is_crossed_at_the_base() -> None:
    assert damage.crossing([0.7, 0.1, 0.1, 0.9], 0.7) == damage.Crossing(0, 0, 1.0)
    assert damage.crossing([0.7], 0.8) is None
    assert damage.crossing([], 0.5) is None


def test_a_single_peak_below_later_values_is_no_crossing() -> None:
    values = [0.0, 0.9, 0.3, 0.4, 0.9, 0.9]  # the peak is pooled with what follows it
    found = damage.crossing(values, 0.7)
    assert found is not None
    assert (found.before, found.after) == (3, 4)


def test_brackets_are_those_of_the_closed_form() -> None:
    levels = [level + 0.0123456 for level in damage.LEVELS]  # no mean of the values is as large
    for values in trajectories(300):
        expected = set()
        fit = by_minima(values)
        for level in levels:
            if values[0] >= level:
                expected |= {0}
            elif fit[-1] >= level:
                first = next(i for i, value in enumerate(fit) if value >= level)
                expected |= {first - 1, first}
        assert damage.brackets(values, levels) == expected, values


def test_more_values_never_need_a_measurement_before_the_first_needed() -> None:
    for values in trajectories(300, longest=30):
        kept = 0
        for seen in range(1, len(values) + 1):
            first = damage.first_needed(values[:seen], min(damage.LEVELS))
            assert first >= kept  # what was let go is not asked for again
            kept = first
            needed = damage.brackets(values[:seen], damage.LEVELS) - {0}
            assert all(index >= kept for index in needed)


def test_the_first_needed_is_the_measurement_before_the_first_crossing_or_the_last_so_far() -> None:
    assert damage.first_needed([0.0], 0.5) == 0
    assert damage.first_needed([0.0, 0.1, 0.2], 0.5) == 2
    assert damage.first_needed([0.0, 0.1, 0.6, 0.9], 0.5) == 1
    assert damage.first_needed([0.0, 0.1, 0.6, 0.0], 0.5) == 3
    assert damage.first_needed([0.6, 0.1, 0.2], 0.5) == 0


def test_a_longer_fit_is_nowhere_above_a_shorter_one_by_rounding() -> None:
    rng = random.Random(1)
    for _ in range(200):
        values = [rng.random()]
        for _ in range(15):  # nearly equal values: their means are rounded
            values.append(values[-1] - rng.choice((0, 1, 1, 2)) * float(np.spacing(values[0])))
        for seen in range(1, 15):
            assert (isotonic(values[: seen + 1])[:seen] <= isotonic(values[:seen])).all()


def test_noise_on_a_plateau_below_a_level_reaches_it_seldom() -> None:
    """A plateau at .77 with noise .04: a first value above .8 is there nearly always."""
    rng = np.random.default_rng(0)
    first = fitted = 0
    trials = 500
    for _ in range(trials):
        rise = np.linspace(0, 0.77, 10)
        values = np.concatenate([rise, 0.77 + 0.04 * rng.standard_normal(40)])
        values[0] = 0.0
        first += bool((values >= 0.8).any())
        fitted += damage.crossing(values.tolist(), 0.8) is not None
    assert first / trials > 0.85
    assert fitted / trials < 0.5

"""Statistics give the values of enumeration by hand, scipy, statsmodels and published examples."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from dsa_sandbox.verdict.inference import bootstrap, sign_flip
from dsa_sandbox.verdict.inference.equivalence import tost, tost_t
from dsa_sandbox.verdict.inference.holm import holm
from dsa_sandbox.verdict.inference.t_test import t_test
from dsa_sandbox.verdict.inference.wilcoxon import wilcoxon

# Darwin's maize, self- against cross-fertilised, in eighths of an inch
# (Fisher 1935, The Design of Experiments, sections 17 and 21)
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
RNG = np.random.default_rng(7)


def flipped(values: np.ndarray) -> np.ndarray:
    """The sum under each of the 2^n patterns of signs, one after another."""
    return np.array([np.dot(signs, values) for signs in product((1, -1), repeat=len(values))])


def test_fishers_count_of_darwins_maize() -> None:
    assert sign_flip.p_greater(MAIZE) * 2**15 == 863
    assert sign_flip.p_value(MAIZE) == pytest.approx(0.0527, abs=5e-5)
    assert t_test(MAIZE).p == pytest.approx(0.0497, abs=5e-5)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_sign_flip_test_counts_all_patterns(n: int) -> None:
    values = RNG.normal(0.4, 1, n)
    sums = flipped(values)
    assert sign_flip.p_greater(values) == (sums >= values.sum() - 1e-12).mean()
    assert sign_flip.p_less(values) == (sums <= values.sum() + 1e-12).mean()
    two_sided = (np.abs(sums) >= abs(values.sum()) - 1e-12).mean()
    assert sign_flip.p_value(values) == pytest.approx(two_sided)


def test_the_sign_flip_test_is_scipys_permutation_test_of_all_signs() -> None:
    values = RNG.normal(0.4, 1, 9)
    for mean in (0.0, 0.3):
        for ours, alternative in (
            (sign_flip.p_value, "two-sided"),
            (sign_flip.p_greater, "greater"),
            (sign_flip.p_less, "less"),
        ):
            found = stats.permutation_test(
                (values - mean,),
                np.mean,
                permutation_type="samples",
                n_resamples=np.inf,
                alternative=alternative,
            )
            assert ours(values, mean) == pytest.approx(found.pvalue)


def test_many_samples_at_once_are_each_tested_alone() -> None:
    samples = RNG.normal(0.3, 1, (3, 2, 7))
    for function in (sign_flip.p_value, sign_flip.p_greater, sign_flip.lower_bound):
        found = function(samples)
        assert found.shape == (3, 2)
        assert found[2, 1] == pytest.approx(float(function(samples[2, 1])))


def test_equal_values_and_zeros_have_the_p_values_that_ties_give() -> None:
    assert sign_flip.p_value([0.0] * 10) == 1
    assert sign_flip.p_value([0.1] * 10) == 2 / 2**10
    assert sign_flip.p_value([1, -1]) == 1
    # rounding is no effect: the same number in another way
    assert sign_flip.p_greater([0.1 + 0.2] * 10, 0.3) == 1
    assert sign_flip.p_value(np.full(10, 0.1) - 0.3, -0.2) == 1
    assert sign_flip.p_greater([0.1, 0.2, -0.3]) == 5 / 8  # sums .6 .4 .2 0 0 -.2 -.4 -.6: >= 0


def test_ten_seeds_can_reach_p_002_and_five_cannot_reach_05() -> None:
    assert sign_flip.least_p(10) == pytest.approx(0.00195, abs=1e-5)
    assert sign_flip.least_p(5) > 0.05 > sign_flip.least_p(6)
    low, high = sign_flip.interval(RNG.normal(size=5))
    assert low == -np.inf
    assert high == np.inf


def test_bounds_are_averages_of_subsets_by_their_rank() -> None:
    values = np.array([0.3, -0.1, 0.7, 1.2, 0.25, -0.6])
    averages = sorted(
        np.mean(chosen) for size in range(1, 7) for chosen in combinations(values, size)
    )
    # 64 patterns: .05 x 64 = 3.2, so that the third average is the bound at 95 %
    assert sign_flip.lower_bound(values, 0.95) == pytest.approx(averages[2])
    assert sign_flip.upper_bound(values, 0.95) == pytest.approx(averages[-3])
    assert sign_flip.interval(values, 0.95)[0] == pytest.approx(averages[0])
    assert sign_flip.interval(values, 0.9)[1] == pytest.approx(averages[-3])


@pytest.mark.parametrize("level", [0.9, 0.95, 0.975])
def test_bounds_hold_exactly_the_means_that_the_test_does_not_reject(level: float) -> None:
    for _ in range(20):
        values = RNG.normal(0, 1, 8)
        bound = float(sign_flip.lower_bound(values, level))
        assert sign_flip.p_greater(values, bound + 1e-9) > 1 - level
        assert sign_flip.p_greater(values, bound - 1e-9) <= 1 - level
        low, high = sign_flip.interval(values, level)
        for mean in np.linspace(-3, 3, 61):
            assert (low <= mean <= high) == (sign_flip.p_value(values, mean) > 1 - level)


@pytest.mark.parametrize(("n", "exact"), [(10, 0.9512), (12, 0.9502)])
def test_the_interval_covers_the_mean_at_its_exact_level_with_seed_order_and_item_effects(
    n: int, exact: float
) -> None:
    assert sign_flip.coverage(n) == pytest.approx(exact, abs=5e-5)
    studies, tasks, items = 3_000, 5, 8
    seed = RNG.normal(0, 0.03, (studies, n, 1))
    order = RNG.choice([-0.02, 0.02], (studies, n, 1))
    task = RNG.normal(0, 0.05, (studies, n, tasks))
    item = RNG.uniform(-0.2, 0.2, (studies, n, tasks, items)).mean(-1)
    blocks = np.median(seed + order + task + item, axis=-1) - 0.1
    low, high = sign_flip.interval(blocks)
    share = ((low <= -0.1) & (high >= -0.1)).mean()
    assert 0.93 <= share <= 0.97
    assert share == pytest.approx(exact, abs=0.013)  # three standard errors


def test_a_sign_flip_test_refuses_what_it_cannot_enumerate() -> None:
    for values in (np.zeros(21), np.zeros(0)):
        with pytest.raises(ValueError, match="1 to 20 values"):
            sign_flip.p_value(values)
    with pytest.raises(ValueError, match="finite"):
        sign_flip.p_value([1, np.inf])
    assert np.isfinite(sign_flip.interval(RNG.normal(size=18))).all()


def test_the_t_test_is_that_of_statsmodels() -> None:
    values = RNG.normal(0.3, 1, 9)
    other = DescrStatsW(values)
    found = t_test(values.tolist(), 0.1)
    assert found.p == pytest.approx(other.ttest_mean(0.1)[1])
    assert (found.low, found.high) == pytest.approx(other.tconfint_mean(0.05))
    assert t_test([2.0, 2.0]) == (0.0, 2.0, 2.0)
    assert np.isnan(t_test([1.0]).p)


def test_wilcoxons_test_by_hand_and_by_enumeration() -> None:
    assert wilcoxon([1, 2, 3]) == 2 / 8
    assert wilcoxon([0, 0, 0]) == 1
    tied = [1.0, 1.0, -2.0, 3.0, 0.5]
    ranks = stats.rankdata(np.abs(tied))
    sums = flipped(ranks)
    expected = (np.abs(sums) >= abs(np.dot(np.sign(tied), ranks)) - 1e-12).mean()
    assert wilcoxon(tied) == pytest.approx(expected)
    values = RNG.normal(0.5, 1, 9)
    assert wilcoxon(values.tolist()) == pytest.approx(stats.wilcoxon(values, mode="exact").pvalue)


def test_holm_by_hand_and_as_statsmodels_does() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6]) == pytest.approx([0.6])
    assert holm([]).tolist() == []
    many = RNG.uniform(0, 0.3, (4, 5))
    for ours, p in zip(holm(many), many):
        assert ours == pytest.approx(multipletests(p, method="holm")[1])


def test_two_one_sided_tests_are_those_of_statsmodels_and_of_the_interval_at_90() -> None:
    values = RNG.normal(0.005, 0.01, 10)
    assert tost_t(values.tolist(), 0.02) == pytest.approx(
        DescrStatsW(values).ttost_mean(-0.02, 0.02)[0]
    )
    for mean in (0.0, 0.012, 0.014, 0.02):
        moved = values - values.mean() + mean
        low, high = sign_flip.interval(moved, 0.9)
        assert (tost(moved.tolist(), 0.02) <= 0.05) == (low > -0.02 and high < 0.02)
    assert tost_t([0.01, 0.01], 0.02) == 0
    assert tost_t([0.03, 0.03], 0.02) == 1


def test_resampling_whole_tasks_gives_the_error_of_their_means() -> None:
    groups = RNG.normal(0, 1, (12, 1)) + np.zeros((12, 20))  # items of a task are alike
    low, high = bootstrap.of_items(groups.tolist())
    error = groups[:, 0].std() / np.sqrt(12)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    unequal = [[1.0], [0.0, 0.0, 0.0], []]
    assert bootstrap.of_items(unequal) == (0.0, 1.0)
    assert np.isnan(bootstrap.of_items([])).all()


def test_a_simultaneous_band_holds_the_whole_curve_and_a_pointwise_one_does_not() -> None:
    inside = {"pointwise": 0, "simultaneous": 0}
    studies = 200
    for _ in range(studies):
        curves = RNG.normal(0, 1, (20, 6))
        band = bootstrap.of_curves(curves.tolist(), resamples=500)
        for name in inside:
            low, high = getattr(band, name)
            inside[name] += bool(((low <= 0) & (high >= 0)).all())
    assert inside["simultaneous"] / studies >= 0.88
    assert inside["pointwise"] / studies <= 0.82  # .95^6 is .74
    assert np.isnan(bootstrap.of_curves([[1.0, 2.0]]).simultaneous).all()

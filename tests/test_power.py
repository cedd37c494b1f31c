"""Power of the whole verdict: the published table, errors on null studies, seeds that decide."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from dsa_sandbox.config.terms import Smallest
from dsa_sandbox.verdict import power, rules
from dsa_sandbox.verdict.inference import sign_flip
from dsa_sandbox.verdict.inference.equivalence import tost

# n, SD: supported at -.10 with one control and with both; refuted at 0 and at +.05; at -.05
TABLE = [
    (8, 0.05, (0.99, 0.99, 0.82, 1.00, 0.044)),
    (8, 0.08, (0.83, 0.72, 0.47, 0.94, 0.041)),
    (10, 0.08, (0.93, 0.88, 0.59, 0.98, 0.042)),
    (12, 0.08, (0.97, 0.94, 0.69, 1.00, 0.046)),
]


@pytest.mark.parametrize(("n", "sd", "expected"), TABLE)
def test_the_table_of_power_is_reproduced_within_three_points(
    n: int, sd: float, expected: tuple[float, ...]
) -> None:
    options: dict[str, Any] = {"sd": sd / 0.05, "studies": 3_000}
    strong, none, harm, least = (
        power.simulated("H2c", n, effect=effect, **options) for effect in (-2, 0, 1, -1)
    )
    found = (strong.supported_one, strong.supported, none.refuted, harm.refuted, least.refuted)
    assert found == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("claim", ["H2", "H2c"])
@pytest.mark.parametrize("n", [10, 12])
def test_null_studies_are_supported_and_least_effects_refuted_in_at_most_5_of_100(
    claim: str, n: int
) -> None:
    options: dict[str, Any] = {"sd": 1.6, "correlation": 0.5, "studies": 2_000}
    assert power.simulated(claim, n, effect=0, **options).supported <= 0.05
    # at most .05; three standard errors of 2,000 studies are .015
    assert power.simulated(claim, n, effect=-1, **options).refuted <= 0.065


@pytest.mark.parametrize("count", [2, 3, 12])  # H2d; H2a and H2b; as many as H2e has
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_claims_of_several_components_keep_both_errors_at_5_of_100(
    count: int, correlation: float
) -> None:
    generator = np.random.default_rng(count)
    blocks = 0.08 * power.drawn(1_500, 10, count, correlation, 0.0, generator)
    assert rules.supported(list(blocks), 0.05).mean() <= 0.05
    assert rules.refuted(list(blocks - 0.05), 0.05).mean() <= 0.067  # three standard errors


def test_a_difference_of_the_margin_passes_for_none_in_at_most_5_of_100() -> None:
    generator = np.random.default_rng(3)
    blocks = 0.02 + 0.01 * power.drawn(1_500, 10, 1, 0.0, 0.0, generator)[0]
    assert np.mean([tost(one.tolist(), 0.02) <= 0.05 for one in blocks]) <= 0.067
    assert np.mean(sign_flip.p_less(blocks, 0.02) <= 0.05) <= 0.067  # H2e, at its margin


def test_shares_of_verdicts_add_up() -> None:
    one = power.simulated("H2", 8, effect=-1, sd=1.0, studies=200)
    assert one.supported + one.refuted + one.undecided == pytest.approx(1)


def test_simulated_blocks_have_the_mean_sd_correlation_and_skew_asked_for() -> None:
    generator = np.random.default_rng(0)
    for skew in (0.0, 2.0, -2.0):
        blocks = power.drawn(20_000, 2, 2, 0.5, skew, generator)
        assert blocks.shape == (2, 20_000, 2)
        assert blocks.mean() == pytest.approx(0, abs=0.02)
        assert blocks.std() == pytest.approx(1, abs=0.03)
        assert stats.skew(blocks.ravel()) == pytest.approx(skew, abs=0.25)
        found = np.corrcoef(blocks[0].ravel(), blocks[1].ravel())[0, 1]
        assert found == pytest.approx(0.5, abs=0.06)


def test_the_least_number_of_seeds_has_the_power_and_one_less_has_not() -> None:
    groups = [power.Group(1, 0.08, 0.05)]
    least = power.least_seeds(groups, 0.0, 2)
    assert least is not None
    # the noncentral t distribution gives the same, of one component
    exact = [
        stats.nct.sf(stats.t.ppf(0.95, n - 1), n - 1, 0.05 / 0.08 * np.sqrt(n))
        for n in range(2, 40)
    ]
    by_hand = next(n for n, share in zip(range(2, 40), exact) if share >= 0.8)
    assert abs(least - by_hand) <= 1
    assert power.least_seeds(groups, 0.0, 30) == 31
    assert power.least_seeds([power.Group(1, 5.0, 0.05)], 0.0, 2) is None


def test_refuting_a_component_is_easier_with_more_of_them() -> None:
    two = power.refuting_power([power.Group(2, 0.08, 0.05)], 0.0, 12)
    one = power.refuting_power([power.Group(1, 0.08, 0.05)], 0.0, 12)
    both = power.refuting_power([power.Group(1, 0.08, 0.05)] * 2, 0.0, 12)
    assert both < one < two


def test_rules_take_many_studies_at_once() -> None:
    blocks = np.random.default_rng(1).normal(-0.1, 0.08, (2, 50, 10))
    together = rules.supported(list(blocks), 0.05)
    alone = [bool(rules.supported(list(blocks[:, study]), 0.05)) for study in range(50)]
    assert together.tolist() == alone
    together = rules.refuted(list(blocks), 0.05)
    assert together.tolist() == [bool(rules.refuted(list(blocks[:, k]), 0.05)) for k in range(50)]


def test_the_table_of_the_command_has_a_row_for_each_effect_and_a_least_number() -> None:
    found = power.table("H2", [6], sd=0.14)
    assert [row["effect"] for row in found["rows"]] == pytest.approx([-0.2, -0.1, 0, 0.1])
    assert found["least_seeds"] > 10
    assert found["smallest"] == Smallest().drift
    other = power.table("H2c", [6], sd=0.05, effect=-0.03)
    assert [row["effect"] for row in other["rows"]] == pytest.approx([-0.03])

"""What tuning tries and chooses, against choices made by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from dsa_sandbox.config import rates
from dsa_sandbox.config.rates import RATE
from dsa_sandbox.config.resolve import resolve
from dsa_sandbox.registry import strategies
from dsa_sandbox.tuning import choices, grids, single, stream
from dsa_sandbox.tuning import tune as tuning
from dsa_sandbox.tuning.choices import Tried, interaction, needed, ranked, shared_rate, study_level

NAN = math.nan
STRENGTH = "ewc.strength"

# --- single tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # the slowest architecture decides: 50 is nearer to 60 than 80, though dense takes 60 there
        ({1.0: {"dense": 60.0, "dsa": 80.0}, 2.0: {"dense": 20.0, "dsa": 50.0}}, 2.0),
        # equally near: the lower rate
        ({1.0: {"dsa": 70.0}, 2.0: {"dsa": 50.0}}, 1.0),
        ({2.0: {"dsa": 70.0}, 1.0: {"dsa": 50.0}}, 1.0),
        # an architecture that does not reach the level rules its rate out
        ({1.0: {"dense": 60.0, "dsa": NAN}, 2.0: {"dense": 9.0, "dsa": 199.0}}, 2.0),
        ({1.0: {"dense": 60.0, "dsa": NAN}, 2.0: {"dense": NAN, "dsa": 60.0}}, None),
        ({}, None),
    ],
)
def test_the_shared_rate_is_where_the_slowest_architecture_takes_nearest_to_60_steps(
    steps: dict[float, dict[str, float]], expected: float | None
) -> None:
    assert shared_rate(steps) == expected


@pytest.mark.parametrize(("num_tasks", "least"), [(12, 11), (24, 22), (4, 4), (2, 2), (13, 12)])
def test_eleven_of_twelve_tasks_are_enough(num_tasks: int, least: int) -> None:
    assert needed(num_tasks) == least


@pytest.mark.parametrize(
    ("reached", "level"),
    [
        ([{0.8: 11, 0.7: 12, 0.6: 12}, {0.8: 11, 0.7: 11, 0.6: 12}], 0.8),
        ([{0.8: 12, 0.7: 12, 0.6: 12}, {0.8: 10, 0.7: 11, 0.6: 12}], 0.7),
        ([{0.8: 12, 0.7: 10, 0.6: 12}, {0.8: 10, 0.7: 12, 0.6: 11}], 0.6),
        ([{0.8: 12, 0.7: 12, 0.6: 12}, {0.8: 0, 0.7: 0, 0.6: 10}], None),
        ([], None),
    ],
)
def test_the_level_is_the_highest_that_every_arm_reaches_in_eleven_of_twelve(
    reached: list[dict[float, int]], level: float | None
) -> None:
    assert study_level(reached, 12) == level


def figures(*damage: float | None, steps: float = 50.0, reached: float = 1.0) -> dict[str, Any]:
    """Figures of an arm of single tasks; None: a task that does not reach .7."""
    levels = [{"0.7": None if one is None else {"damage": one}} for one in damage]
    at = {"reached": reached, "steps": steps, "damage": 0.1}
    return {
        "trajectories": [{"levels": one} for one in levels],
        "by_level": {f"{level:g}": at for level in choices.LEVELS},
    }


def test_h2c_is_the_median_over_the_tasks_that_all_four_arms_reach() -> None:
    arms = {
        "dsa acft": figures(0.2, 0.1, 0.3, None, 9.0),
        "dsa sgd": figures(0.5, 0.5, 0.5, None, 0.5),
        "dense acft": figures(0.3, 0.3, 0.3, 0.3, None),
        "dense sgd": figures(0.4, 0.4, 0.4, 0.4, None),
    }
    # [.2 - .5] - [.3 - .4] = -.2, then -.3 and -.1; the others are missed by one or two arms
    value, num_tasks = interaction(arms, "dense", 0.7)
    assert value == pytest.approx(-0.2)
    assert num_tasks == 3
    alone, none = interaction(arms | {"dsa sgd": figures(*[None] * 5)}, "dense", 0.7)
    assert math.isnan(alone)
    assert none == 0


def shared(strategy: str, grid: dict[tuple[float, str], Any]) -> single.Shared:
    return single.chosen(single.Rule(strategy, 1.0, {}), grid)


def test_an_arm_that_has_diverged_has_not_reached_anything() -> None:
    found = shared("sgd", {(1.0, "dsa"): figures(steps=100.0), (2.0, "dsa"): None})
    assert found.rate == 1.0
    assert found.edge == "lowest"
    assert single.level_of([found], ["dsa"], 12) == 0.8
    rows = single.rows([shared("sgd", {(2.0, "dsa"): None})], ["dsa"], (4, 12))
    assert [row["reached_0.7"] for row in rows] == [0]
    assert rows[0]["diverged"]
    assert single.level_of([shared("sgd", {(2.0, "dsa"): None})], ["dsa"], 12) is None


def test_only_arms_of_the_primary_claims_decide_the_level() -> None:
    poor = figures(reached=0.5)
    good = shared("sgd", {(1.0, arch): figures() for arch in ("dense", "dsa")})
    ewc = shared("ewc", {(1.0, "dense"): figures(), (1.0, "dsa"): poor})
    lora = shared("lora", {(1.0, arch): poor for arch in ("dense", "dsa")})
    assert single.level_of([good, ewc, lora], ["dense", "dsa"], 12) == 0.8
    bad = shared("ewc", {(1.0, "dense"): poor, (1.0, "dsa"): poor})
    assert single.level_of([good, bad], ["dense", "dsa"], 12) is None


def test_the_level_and_the_chosen_rows_are_of_all_tasks_and_the_grid_of_the_first() -> None:
    grid = {(rate, "dsa"): figures(0.4, steps=30 * rate) for rate in (1.0, 2.0)}
    one = shared("sgd", grid)._replace(full={"dsa": figures(*12 * [0.5], reached=0.5, steps=70.0)})
    assert one.rate == 2.0
    assert single.level_of([one], ["dsa"], 12) is None  # not reached by enough of the 12
    rows = single.rows([one], ["dsa"], (4, 12))
    seen = [(row["rate"], row["tasks"], row["reached_0.7"], row["chosen"]) for row in rows]
    assert seen == [(1.0, 4, 4, False), (2.0, 4, 4, False), (2.0, 12, 6, True)]
    only = single.rows([one], ["dsa"], (12, 12))
    assert [(row["rate"], row["chosen"]) for row in only] == [(1.0, False), (2.0, True)]


def test_h2c_stands_at_every_pair_of_rates_and_control() -> None:
    archs = ("dense", "dsa", "dsa-full")
    sgd = shared("sgd", {(rate, arch): figures(0.4) for rate in (1.0, 2.0) for arch in archs})
    acft = shared("acft", {(rate, arch): figures(0.1 * rate) for rate in (3.0,) for arch in archs})
    rows = single.interactions([sgd, acft], 0.7)
    assert {(row["control"], row["rate_sgd"], row["rate_acft"]) for row in rows} == {
        (control, rate, 3.0) for control in ("dense", "dsa-full") for rate in (1.0, 2.0)
    }
    assert all(row["value"] == pytest.approx(0.0) and row["tasks"] == 1 for row in rows)
    assert single.interactions([sgd], 0.7) == []
    # the chosen pair: the differences of its own tasks, three here
    several = {arch: figures(*3 * [0.1 if arch == "dsa" else 0.3]) for arch in archs}
    rows = single.interactions([one._replace(full=several) for one in (sgd, acft)], 0.7)
    assert {(row["tasks"], row["chosen"]) for row in rows} == {(1, False), (3, True)}


# --- the stream -----------------------------------------------------------------------------------


def tried(name: float, drift: float, lost: float, reached: int) -> Tried:
    return Tried({RATE: name}, drift, lost, reached, 12)


def test_enough_tasks_come_before_a_least_sum_and_most_tasks_before_it_where_none_has_enough() -> (
    None
):
    cheap, good, better = tried(1, 0.0, 0.0, 10), tried(2, 0.3, 0.1, 11), tried(3, 0.1, 0.2, 12)
    diverged = tried(4, NAN, NAN, 0)
    assert ranked([diverged, cheap, good, better]) == [better, good, cheap, diverged]
    few = [tried(1, 0.0, 0.0, 3), tried(2, 0.2, 0.2, 7), tried(3, 0.2, 0.1, 7)]
    assert [one.config[RATE] for one in ranked(few)] == [3, 2, 1]


def test_equal_configurations_stay_in_their_order_and_an_unknown_sum_is_the_worst() -> None:
    same = [tried(1, 0.2, 0.1, 12), tried(2, 0.1, 0.2, 12), tried(3, NAN, 0.0, 12)]
    assert [one.config[RATE] for one in ranked(same)] == [1, 2, 3]
    assert same[0].sum == pytest.approx(3.0)
    assert same[2].sum == math.inf


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*strategies, "acft+ewc"])
def test_every_arm_of_the_stream_has_exactly_eight_valid_configurations(strategy: str) -> None:
    strength = grids.strength_of(strategy)
    centre = {RATE: 3e-4, **({strength.key: 0.3} if strength else {})}
    configs = grids.stream_configs(strategy, centre)
    assert len({tuple(config.items()) for config in configs}) == 8
    for config in configs:
        sets = [f"{key}={value!r}" for key, value in config.items()]
        options = {"strategy": (strategy, "--strategy")}
        resolve(sets=sets, options=options, with_strategy=True)


def test_a_strategy_with_a_strength_of_its_own_has_it_tuned() -> None:
    """A new strategy with such a setting has to be named in STRENGTHS."""
    for name in strategies:
        if "strength" in strategies[name].Settings.model_fields:
            assert grids.strength_of(name) == (f"{name}.strength", 10**0.5, False)
    assert grids.strength_of("acft+ewc") == grids.STRENGTHS["ewc"]
    assert grids.strength_of("acft") is None


def test_rates_of_single_tasks_are_factors_of_two_apart_and_shares_stay_shares() -> None:
    assert grids.single_rates(3e-4) == [7.5e-5, 1.5e-4, 3e-4, 6e-4]
    alpha = grids.STRENGTHS["wise"]
    assert [alpha.moved(0.5, steps) for steps in (-2, 0, 2)] == [0.2, 0.5, 0.8]


def grid() -> list[grids.Config]:
    return grids.stream_configs("ewc", {RATE: 6e-4, STRENGTH: 0.3})


@pytest.mark.parametrize(
    ("rate", "strength", "expected"),
    [
        (6e-4, 0.3, [{RATE: 3e-4, STRENGTH: 0.3}]),
        (1.2e-3, 0.0949, [{RATE: 2.4e-3, STRENGTH: 0.0949}]),
        (6e-4, 0.949, [{RATE: 3e-4, STRENGTH: 0.949}, {RATE: 6e-4, STRENGTH: 3.0}]),
        (1.2e-3, 0.03, [{RATE: 2.4e-3, STRENGTH: 0.03}, {RATE: 1.2e-3, STRENGTH: 0.00948}]),
    ],
)
def test_a_best_value_at_an_edge_has_one_neighbour_beyond_it(
    rate: float, strength: float, expected: list[grids.Config]
) -> None:
    best = {RATE: rate, STRENGTH: strength}
    assert best in grid()
    assert grids.beyond(best, grid(), grids.stream_axes("ewc")) == expected


def test_an_edge_is_the_lowest_or_highest_of_several_values_tried() -> None:
    axes = grids.stream_axes("ewc")
    assert grids.edges({RATE: 6e-4, STRENGTH: 0.3}, grid(), axes) == {RATE: "lowest"}
    more = [*grid(), {RATE: 3e-4, STRENGTH: 0.3}]
    assert grids.edges({RATE: 6e-4, STRENGTH: 0.3}, more, axes) == {}
    assert grids.edges({RATE: 1.0}, [{RATE: 1.0}], [grids.STREAM_RATE]) == {}
    rates = [{RATE: rate} for rate in grids.single_rates(3e-4)]
    assert grids.beyond({RATE: 1.5e-4}, rates, [grids.SINGLE_RATE]) == []


@pytest.mark.parametrize(("tasks", "is_told"), [(4, True), (3, False)])
def test_a_sign_of_h2c_that_changes_is_told_where_enough_tasks_reach_the_level(
    tasks: int, is_told: bool
) -> None:
    grid: dict[str, dict[tuple[float, str], Any]] = {"sgd": {}, "acft": {}}
    for arch in ("dense", "dsa", "dsa-full"):
        for rate in (1.0, 2.0):
            damage = 0.5 if arch == "dsa" and rate == 2.0 else 0.1  # above the control's, or below
            missed: list[None] = [None] * (4 - tasks)
            grid["acft"][rate, arch] = figures(*tasks * [damage], *missed)
            grid["sgd"][rate, arch] = figures(*tasks * [0.2], *missed)
    rules = [shared(name, one)._replace(rate=None) for name, one in grid.items()]
    for rate, arch in [key for key in grid["sgd"] if key[1] == "dsa"]:
        rules[0].figures[rate, arch] = figures(*tasks * [0.3], *[None] * (4 - tasks))
    request: Any = SimpleNamespace(counts=(4, 12))
    told = tuning.remarks(request, found(rules, [])._replace(level=0.7))
    assert any("sign of H2c changes" in line for line in told) == is_told


# --- the table ------------------------------------------------------------------------------------


def found(shared_: list[single.Shared], best: list[stream.Best]) -> tuning.Found:
    return tuning.Found(shared_, best, 0.6, 0.7, None)  # type: ignore[arg-type]


def test_the_table_has_one_rate_for_every_architecture_and_each_arms_own_for_the_stream() -> None:
    strengths = {"dense": {STRENGTH: 0.1}, "dsa": {STRENGTH: 0.3}}
    grid_: dict[tuple[float, str], single.Figures] = {(1.0, arch): figures() for arch in strengths}
    ewc = single.chosen(single.Rule("ewc", 1.0, strengths), grid_)
    missed = shared("sgd", {(1.0, "dsa"): None})
    best = [
        stream.Best(arch, "ewc", [], [Tried(config, 0.1, 0.1, 12, 12)], {})
        for arch, config in {
            "dense": {RATE: 2.0, STRENGTH: 0.1},
            "dsa": {RATE: 3.0, STRENGTH: 0.3},
        }.items()
    ]
    table = tuning.table_of(found([ewc, missed], best))
    assert table["level"] == 0.6

    def values(experiment: str, arch: str) -> dict[str, float]:
        row = rates.row_for(table[experiment], arch, "ewc")
        assert row is not None
        assert row.how == rates.TUNED
        return row.values

    assert values("single", "dense") == {RATE: 1.0, STRENGTH: 0.1}
    assert values("single", "dsa") == {RATE: 1.0, STRENGTH: 0.3}
    assert values("single", "dsa-full") == {RATE: 1.0}
    assert values("stream", "dense") == {RATE: 2.0, STRENGTH: 0.1}
    assert values("stream", "dsa") == {RATE: 3.0, STRENGTH: 0.3}
    assert rates.row_for(table["single"], "dsa", "sgd") is None


def test_a_new_row_replaces_the_old_one_and_leaves_the_others() -> None:
    old = {"level": 0.7, "stream": {"dsa": {"ewc": {RATE: 1.0, STRENGTH: 2.0}, "sgd": {RATE: 3.0}}}}
    new = {"level": 0.8, "stream": {"dsa": {"ewc": {RATE: 4.0}}, "dense": {"sgd": {RATE: 5.0}}}}
    assert tuning.joined(old, new) == {
        "level": 0.8,
        "stream": {"dsa": {"ewc": {RATE: 4.0}, "sgd": {RATE: 3.0}}, "dense": {"sgd": {RATE: 5.0}}},
    }

"""Verdicts on tables made by hand: the order of the five, missed tasks, gates, falsifiers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from verdict_tables import (
    NOISE,
    SEEDS,
    Arms,
    Figures,
    alone,
    base,
    bases,
    blocks_of,
    eight,
    streamed,
    streams,
    terms,
)

from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.claim import Claim
from dsa_sandbox.verdict.comparison import Comparison, pair, single, stream
from dsa_sandbox.verdict.judge import Judgement, judge

INF = math.inf
DSA, PLAIN = single("dsa", "acft"), single("dsa", "sgd")


def with_ewc(arms: Arms, damage: float = 0.7) -> Arms:
    """The arms, with single tasks of dense EWC."""
    return arms | {single("dense", "ewc"): alone([damage] * 6)}


def only(judgement: Judgement) -> tuple[str, str]:
    """Verdict and reason of the first claim."""
    return judgement.findings[0].verdict, judgement.findings[0].why


def of(claim: str, blocks: list[Block], **more: Any) -> tuple[str, str]:
    """Verdict and reason of one claim on a table."""
    return only(judge(blocks, terms(claim, **more), resample=False))


def test_a_gain_beyond_the_smallest_effect_in_both_controls_is_supported() -> None:
    judgement = judge(blocks_of(lambda place: eight(0.1, place)), terms("H2c"))
    word, why = only(judgement)
    assert word == "supported"
    assert "-0.100 nats" in why
    one = judgement.findings[0].components[0]
    assert one["mean"] == pytest.approx(-0.1)
    assert one["p"] == pytest.approx(2 / 2**10)  # all ten blocks have one sign
    assert one["values"]["100"] == pytest.approx(-0.12)


def test_equal_arms_have_p_1_and_refute_the_claim() -> None:
    def same(place: int) -> Arms:
        return {key: alone([0.4, 0.5, 0.6]) for key in eight(0, place)}

    judgement = judge(blocks_of(same), terms("H2c"))
    assert only(judgement)[0] == "refuted"
    assert [one["p"] for one in judgement.findings[0].components] == [1.0, 1.0]


def test_a_certain_effect_that_is_too_small_is_refuted_as_smaller_than_matters() -> None:
    word, why = of("H2c", blocks_of(lambda place: eight(0.025, place)))
    assert word == "refuted"
    assert why.startswith("smaller than matters: ")


def test_an_effect_that_is_neither_shown_nor_excluded_is_undecided_and_says_how_many_seeds() -> (
    None
):
    def wide(place: int) -> Arms:
        return eight(0.045 + 5 * float(NOISE[place]), place)

    word, why = of("H2c", blocks_of(wide))
    assert word == "undecided"
    assert "seeds would refute a true 0 with power 0.8" in why
    assert int(why.split(" seeds would")[0].split()[-1]) > 10


def test_a_gain_in_nats_that_is_none_in_ratio_is_undecided() -> None:
    def proportional(place: int) -> Arms:
        noise = float(NOISE[place])
        arms = eight(0.1, place)
        # a mask leaves .3 of every damage; that of dsa is larger, so more nats are saved
        for arch, damage in (("dense", 0.4), ("dsa", 0.6 + noise), ("dsa-full", 0.4)):
            arms[single(arch, "sgd")] = alone([damage] * 6)
            arms[single(arch, "acft")] = alone([damage * 0.3] * 6)
        arms[DSA] = alone([(0.6 + noise) * 0.305] * 6)
        return arms

    word, why = of("H2c", blocks_of(proportional))
    assert word == "undecided"
    assert why.startswith("in nats, not in ratio")


def missing(keys: tuple[ArmKey, ...], tasks: tuple[int, ...], gain: float = 0.1) -> list[Block]:
    """Blocks in which some arms miss some tasks."""

    def arms(place: int) -> Arms:
        found = eight(gain, place)
        for key in keys:
            damages = [
                INF if task in tasks else one["levels"]["0.7"]["damage"]
                for task, one in enumerate(found[key]["trajectories"])
            ]
            found[key] = alone(damages)
        return found

    return blocks_of(arms)


SIX = [single(arch, name) for arch in ("dense", "dsa", "dsa-full") for name in ("sgd", "acft")]


def test_where_all_arms_miss_all_tasks_nothing_is_comparable() -> None:
    word, why = of("H2c", missing(tuple(SIX), tuple(range(6))))
    assert word == "not comparable"
    assert "dsa acft" in why
    assert "dense sgd" in why


def test_where_one_arm_misses_more_than_a_third_it_is_named() -> None:
    word, why = of("H2c", missing((single("dense", "sgd"),), (0, 1, 2)))
    assert word == "not comparable"
    assert "dense sgd missed some" in why
    assert "dsa acft" not in why
    assert of("H2c", missing((single("dense", "sgd"),), (0, 1)))[0] == "supported"


def test_infinity_against_infinity_counts_against_the_hypothesis() -> None:
    found = judge(missing((DSA, PLAIN), (0, 1)), terms("H2c"), resample=False)
    one = found.findings[0].components[0]
    # two of six tasks are +infinity, the other four -.12: so is the median
    assert one["values"]["100"] == pytest.approx(-0.12)
    assert found.findings[0].verdict == "supported"
    half = judge(missing((DSA, PLAIN), (0, 1, 2)), terms("H2c"), resample=False).findings[0]
    assert half.components[0]["infinite"] == 10
    assert half.components[0]["mean"] == pytest.approx(2 * 0.05)  # no finite block is larger
    assert half.verdict == "not comparable"


def test_plateaus_below_the_level_in_one_block_do_not_end_the_comparison() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        return found | ({DSA: alone([INF] * 6)} if place == 0 else {})

    found = judge(blocks_of(arms), terms("H2c"), resample=False).findings[0]
    assert found.verdict == "supported"
    values = found.components[0]["values"]
    assert values["100"] == pytest.approx(0.12)  # the largest finite |block|
    assert found.components[0]["infinite"] == 1
    assert found.components[0]["refuting"]["n"] == 9


def test_a_task_that_only_another_arm_misses_is_left_out() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        found[single("dense", "sgd")] = alone([INF, *([0.6] * 5)])
        return found

    found = judge(blocks_of(arms), terms("H2c"), resample=False).findings[0]
    assert found.components[1]["infinite"] == 0
    assert found.components[1]["left_out"] == 0
    assert found.verdict == "supported"


def test_a_block_without_a_usable_task_is_left_out_and_counted() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        return found | ({single("dense", "sgd"): alone([INF] * 6)} if place == 0 else {})

    found = judge(blocks_of(arms), terms("H2c"), resample=False).findings[0]
    assert found.components[1]["left_out"] == 1
    assert found.components[1]["n"] == 9
    assert found.components[0]["n"] == 10


def test_an_arm_that_learns_more_and_is_damaged_less_dominates_before_all_else() -> None:
    def arms(place: int) -> Arms:
        found = {single("dsa", rule): alone([0.5, 0.5, INF]) for rule in ("sgd", "ewc", "acft")}
        better = 0.3 if place else 0.9  # in one block of ten it is worse
        found |= {single("dense", rule): alone([better] * 3) for rule in ("sgd", "ewc", "acft")}
        return found

    closed = blocks_of(arms, lambda place: bases(0.5, gate=False))
    word, why = of("H2a", closed)
    assert word == "dominated"
    assert why == "dense sgd learns more tasks and is damaged less than dsa sgd in 9 of 10 seeds"


def test_an_arm_that_learns_nothing_is_dominated_by_one_that_learns_something() -> None:
    def arms(place: int) -> Arms:
        found = {single("dsa", rule): alone([INF] * 3) for rule in ("sgd", "ewc", "acft")}
        return found | {
            single("dense", rule): alone([0.3, 0.3, INF]) for rule in ("sgd", "ewc", "acft")
        }

    assert of("H2a", blocks_of(arms))[0] == "dominated"


def test_an_arm_that_misses_more_tasks_but_is_damaged_less_is_not_dominated() -> None:
    def arms(place: int) -> Arms:
        found = {single("dsa", rule): alone([0.2, 0.2, INF]) for rule in ("sgd", "ewc", "acft")}
        return found | {single("dense", rule): alone([0.3] * 3) for rule in ("sgd", "ewc", "acft")}

    assert of("H2a", blocks_of(arms))[0] != "dominated"


def test_bases_that_are_not_shown_to_be_equal_end_the_comparison() -> None:
    arms: Callable[[int], Arms] = lambda place: eight(0.1, place)  # noqa: E731
    word, why = of("H2c", blocks_of(arms, lambda place: bases(0.03)))
    assert word == "not comparable"
    assert "the bases are not shown to be equal" in why
    # the mean counts, not every seed
    one = blocks_of(arms, lambda place: bases(0.03 if place == 0 else 0.0))
    assert of("H2c", one)[0] == "supported"


def test_bases_of_one_architecture_need_no_test() -> None:
    def arms(place: int) -> Arms:
        return eight(0.1, place)

    unequal = blocks_of(arms, lambda place: bases(0.03))
    found = judge(unequal, terms("H2b"), resample=False).findings[0]
    assert found.verdict == "not comparable"  # it speaks of both dsa and dense


@pytest.mark.parametrize(("shut", "word"), [(1, "supported"), (2, "not comparable")])
def test_the_gate_of_worlds_may_be_closed_in_one_block_only(shut: int, word: str) -> None:
    found = of(
        "H2c",
        blocks_of(lambda place: eight(0.1, place), lambda place: bases(0.001, gate=place >= shut)),
    )
    assert found[0] == word
    if shut == 2:
        assert "100 (dsa), 101 (dsa)" in found[1]


def test_h2_is_supported_by_one_outcome_where_the_other_shows_no_harm() -> None:
    blocks = blocks_of(lambda place: with_ewc(eight(0.1, place)) | streams(-0.2, 0.0, place))
    word, why = of("H2", blocks)
    assert word == "supported"
    assert "lost, " in why
    assert "the other outcome shows no harm" in why
    harm = blocks_of(lambda place: with_ewc(eight(0.1, place)) | streams(-0.2, 0.2, place))
    word, why = of("H2", harm)
    assert word == "refuted"
    assert why.startswith("it does harm: ")
    assert "drift, dsa acft - dense" in why


def test_h2_has_to_beat_both_rivals() -> None:
    def arms(place: int) -> Arms:
        found = with_ewc(eight(0.1, place)) | streams(-0.2, -0.2, place)
        equal = found[stream("dsa", "acft")]
        return found | {stream("dense", "ewc"): equal}

    word, why = of("H2", blocks_of(arms))
    assert word == "refuted"
    assert "dense ewc" in why


def test_h2_is_refuted_only_where_both_outcomes_are() -> None:
    blocks = blocks_of(lambda place: with_ewc(eight(0.1, place)) | streams(0.0, 0.0, place))
    assert of("H2", blocks)[0] == "refuted"

    def arms(place: int) -> Arms:
        found = with_ewc(eight(0.1, place)) | streams(0.0, 0.0, place)
        ours = streamed(0.5 - 0.08 + 6 * float(NOISE[place]), 0.3)
        return found | {stream("dsa", "acft"): ours}

    assert of("H2", blocks_of(arms))[0] == "undecided"


def test_holm_over_two_outcomes_doubles_the_smaller_p() -> None:
    blocks = blocks_of(lambda place: with_ewc(eight(0.1, place)) | streams(-0.2, 0.0, place))
    found = judge(blocks, terms("H2"), resample=False).findings[0]
    assert found.p == pytest.approx(2 * 2 / 2**10)


def test_too_many_capped_tasks_end_a_comparison_of_streams() -> None:
    def capped(count: int, key: ArmKey) -> list[Block]:
        def arms(place: int) -> Arms:
            found = with_ewc(eight(0.1, place)) | streams(-0.2, -0.2, place)
            return found | {key: {**found[key], "capped": count}}

        return blocks_of(arms)

    assert of("H2", capped(1, stream("dense", "sgd")))[0] == "supported"  # 10 of 120
    word, why = of("H2", capped(2, stream("dense", "sgd")))
    assert word == "not comparable"
    assert why == "dense sgd ended 20 of 120 tasks below the level"
    assert of("H2", capped(2, stream("dsa", "acft")))[0] == "not comparable"


def test_the_other_rival_can_still_refute_where_one_is_not_comparable() -> None:
    def arms(place: int) -> Arms:
        found = with_ewc(eight(0.1, place)) | streams(0.3, 0.3, place)
        found[stream("dense", "sgd")]["capped"] = 6
        return found

    word, why = of("H2", blocks_of(arms))
    assert word == "refuted"
    assert "dense ewc" in why
    assert "dense sgd" not in why


def test_a_stream_that_diverged_counts_against_its_own_arm() -> None:
    def arms(place: int) -> Arms:
        found = with_ewc(eight(0.1, place)) | streams(-0.2, -0.2, place)
        if place == 0:
            found[stream("dsa", "acft")] |= {"drift": math.nan, "diverged_after": 3}
        return found

    found = judge(blocks_of(arms), terms("H2"), resample=False).findings[0]
    assert found.components[0]["values"]["100"] == pytest.approx(0.22)
    assert found.components[0]["infinite"] == 1


def test_a_random_mask_that_does_the_same_forbids_support() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        same = found[DSA]
        draws = [key for key in found if key.strategy == "random-mask"]
        return found | dict.fromkeys(draws, same)

    word, why = of("H2c", blocks_of(arms))
    assert word == "undecided"
    assert "a random mask does the same" in why


def test_the_median_of_three_draws_is_the_random_mask() -> None:
    told = judge(blocks_of(lambda place: eight(0.1, place)), terms("H2c"), resample=False)
    (gate,) = [one for one in told.findings[0].gates if one.name == "random-mask"]
    # dsa acft .30, the draws .60, .50 and .55
    found = [
        float(text) for text in gate.line.split("interval ")[1].split(" nats")[0].split(" to ")
    ]
    assert np.mean(found) == pytest.approx(-0.25, abs=0.002)


def test_a_gain_that_far_items_do_not_show_forbids_support() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        damages = [one["levels"]["0.7"]["damage"] for one in found[DSA]["trajectories"]]
        return found | {DSA: alone(damages, far=[0.41] * 6)}

    word, why = of("H2c", blocks_of(arms))
    assert word == "undecided"
    assert "near items only" in why


def test_a_gating_falsifier_that_cannot_be_told_forbids_support() -> None:
    def arms(place: int) -> Arms:
        return {k: one for k, one in eight(0.1, place).items() if k.strategy != "random-mask"}

    word, why = of("H2c", blocks_of(arms))
    assert word == "undecided"
    assert "cannot be told" in why


def test_fewer_than_ten_seeds_have_intervals_and_no_verdict() -> None:
    few = blocks_of(lambda place: eight(0.1, place), seeds=SEEDS[:9])
    found = judge(few, terms("H2c")).findings[0]
    assert found.verdict == "exploratory"
    assert "a verdict needs 10 seeds" in found.why
    assert found.components[0]["interval"][1] < 0
    many = blocks_of(lambda place: eight(0.1, place))
    assert of("H2c", many, confirmatory=False)[0] == "exploratory"


def test_a_seed_with_a_missing_cell_does_not_count() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        if place == 3:
            del found[single("dense", "sgd")]
        return found

    found = judge(blocks_of(arms), terms("H2c")).findings[0]
    assert found.verdict == "exploratory"
    assert found.missing == ["seed 103: dense sgd"]
    assert "seed 103: dense sgd" in found.why
    assert 103 not in found.seeds


def test_excluded_seeds_and_seeds_of_no_plan_do_not_count() -> None:
    seeds = [*SEEDS, 110, 111]
    plan = terms("H2c", seeds=seeds[:11], exclude_seeds={"103": "the disk was full"})
    blocks = blocks_of(lambda place: eight(0.1, place % 10), seeds=seeds)
    found = judge(blocks, plan, resample=False)
    assert found.seeds == [100, 101, 102, *range(104, 111)]
    assert found.findings[0].verdict == "supported"
    assert found.excluded == {"103": "the disk was full"}


def test_secondary_claims_are_corrected_for_those_that_are_run() -> None:
    blocks = blocks_of(lambda place: with_ewc(ewc(eight(0.1, place))))
    found = judge(blocks, terms("H2a", "H2b"), resample=False).findings
    assert [one.p_adjusted for one in found] != [one.p for one in found]
    alone_ = judge(blocks, terms("H2b"), resample=False).findings[0]
    assert alone_.p_adjusted == alone_.p
    with_primary = judge(blocks, terms("H2b", "H2c"), resample=False).findings[0]
    assert with_primary.p_adjusted == with_primary.p


def ewc(arms: Arms) -> Arms:
    """The arms, with single tasks of EWC on dsa as good as those of ACFT."""
    return arms | {single("dsa", "ewc"): alone([0.3] * 6)}


def test_h2d_compares_with_bases_of_their_own() -> None:
    def arms(place: int) -> Arms:
        found = eight(0.1, place)
        for policy in ("random", "window"):
            variant = f"train.selection={policy}"
            found[single("dsa", "sgd", variant)] = alone([0.6] * 6)
            found[single("dsa", "acft", variant)] = alone([0.4] * 6)
        return found

    names = [f"dsa, train.selection={policy}" for policy in ("random", "window")]
    full = blocks_of(arms, lambda place: bases() | {name: base(0.8) for name in names})
    assert of("H2d", full)[0] == "supported"
    found = judge(blocks_of(arms), terms("H2d"), resample=False).findings[0]
    assert found.verdict == "exploratory"
    assert names[0] in found.why


def practice(place: int, damage: float) -> Arms:
    """dsa acft at .3, and every method of practice at a damage."""
    found = {DSA: alone([0.3 + float(NOISE[place])] * 6)}
    for arch in ("dense", "dsa"):
        for name in ("lora", "l2sp", "wise", "replay"):
            found[single(arch, name)] = alone([damage] * 6)
        found[single(arch, "sgd", "finetune.loss=answer")] = alone([damage] * 6)
        for rate, variant in ((1e-3, ""), (1e-4, "finetune.learning_rate=0.0001")):
            arm = alone([damage] * 6) | {"terms": {"finetune.learning_rate": rate}}
            found[single(arch, "sgd", variant)] = arm
        higher = alone([9.0] * 6) | {"terms": {"finetune.learning_rate": 1e-2}}
        found[single(arch, "sgd", "finetune.learning_rate=0.01")] = higher
    return found


@pytest.mark.parametrize(
    ("damage", "word"), [(0.3, "supported"), (0.2, "refuted"), (0.252, "undecided")]
)
def test_h2e_asks_whether_dsa_with_acft_is_worse_by_the_margin(damage: float, word: str) -> None:
    found = judge(
        blocks_of(lambda place: practice(place, damage)), terms("H2e"), resample=False
    ).findings[0]
    assert found.verdict == word
    titles = [one["name"] for one in found.components]
    assert len(titles) == 12
    assert not any("0.01)" in title for title in titles)  # a higher rate is no remedy


def test_h2e_names_the_methods_that_were_not_run() -> None:
    def arms(place: int) -> Arms:
        lower = single("dsa", "sgd", "finetune.learning_rate=0.0001")
        return {key: one for key, one in practice(place, 0.3).items() if key != lower}

    found = judge(blocks_of(arms), terms("H2e")).findings[0]
    assert found.verdict == "exploratory"
    assert "dsa sgd (finetune.learning_rate)" in found.why


H1_TABLES: list[tuple[Mapping[str, Any], str, str]] = [
    ({}, "supported", "all 9 tests pass"),
    ({"known": 60}, "refuted", "facts known, dsa"),
    ({"hit": 0.2}, "undecided", "far world names"),
    ({"hit": 0.1}, "refuted", "stated facts"),
    ({"noise": 0.03}, "refuted", "held-out NLL"),
]


@pytest.mark.parametrize(("changed", "word", "said"), H1_TABLES)
def test_h1_tests_quality_knowledge_and_selection(
    changed: Mapping[str, Any], word: str, said: str
) -> None:
    def made(place: int) -> dict[str, Figures]:
        noise = changed.get("noise", 0.0) + 0.004 * (-1) ** place
        hit = changed.get("hit", 0.5) + 0.01 * (-1) ** place
        rest = {key: value for key, value in changed.items() if key == "known"}
        return bases(noise, hit=hit, **rest)

    found = of("H1", blocks_of(lambda place: {}, made))
    assert found[0] == word
    assert said in found[1]


def test_the_error_of_a_refutation_is_that_of_resampled_blocks_at_the_smallest_effect() -> None:
    def error(blocks: list[Block]) -> float:
        found = judge(blocks, terms("H2c")).findings[0].resampled_error
        assert found is not None
        return found

    even = error(blocks_of(lambda place: eight(0.1, place)))
    assert 0.01 <= even <= 0.08

    def skewed(place: int) -> Arms:
        more = 0.4 if place == 0 else 0.0  # one block of ten gains far more
        return eight(0.1 + more, place)

    assert error(blocks_of(skewed)) > 0.15

    def constant(place: int) -> Arms:
        return eight(0.1, 0)

    assert (
        error(blocks_of(constant)) == 0
    )  # every resampled block is -.05, which a bound at -.05 does not exclude


def test_the_error_of_h2_is_that_of_both_outcomes_and_of_harm() -> None:
    def skewed(place: int) -> Arms:
        lost = -0.9 if place == 0 else 0.0
        return with_ewc(eight(0.1, place)) | streams(lost, lost, place)

    found = judge(blocks_of(skewed), terms("H2")).findings[0]
    assert found.resampled_error is not None
    assert found.resampled_error > 0.15
    even = judge(
        blocks_of(lambda place: with_ewc(eight(0.1, place)) | streams(0, 0, place)), terms("H2")
    )
    assert even.findings[0].resampled_error is not None
    assert even.findings[0].resampled_error <= 0.08


def test_a_claim_of_ones_own_is_a_class_with_a_sentence_and_comparisons() -> None:
    class Wise(Claim):
        """A claim as an included file writes it."""

        sentence = "WiSE-FT does less damage than sgd on dsa."
        gating = ()

        def comparisons(self, blocks: Sequence[Block]) -> list[Comparison]:
            return [pair(single("dsa", "wise"), PLAIN)]

    claims.register("wise")(Wise)
    try:
        wise = single("dsa", "wise")
        blocks = blocks_of(lambda place: eight(0.1, place) | {wise: alone([0.3] * 6)})
        assert of("wise", blocks)[0] == "supported"
        assert Wise().needs() == [wise, PLAIN]
    finally:
        claims.forget("wise")


def test_the_judgement_is_plain_json_without_infinities() -> None:
    few = blocks_of(lambda place: eight(0.1, place), seeds=SEEDS[:3])
    value = judge(few, terms("H2c", "H2", "H1")).as_json()
    text = json.dumps(value, allow_nan=False)
    assert '"exploratory"' in text
    assert value["claims"][0]["components"][0]["interval"] == [None, None]  # 3 seeds bound nothing
    assert next(one["name"] for one in value["falsifiers"]) == "interaction"
    assert len(value["falsifiers"]) == 12


def test_arms_have_means_and_intervals_over_seeds() -> None:
    blocks = blocks_of(lambda place: streams(-0.1, 0.0, place))
    found = {one.key: one for one in judge(blocks, terms()).arms}
    ours = found[stream("dsa", "acft")]
    assert ours.figures["lost"].mean == pytest.approx(0.2)
    assert ours.figures["lost"].interval[0] < 0.2 < ours.figures["lost"].interval[1]
    assert ours.seeds == 10

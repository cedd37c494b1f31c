"""Falsifiers on tables made by hand: each is seen to hold, not to hold, and not to be told."""

from collections.abc import Callable
from functools import partial

import pytest
from verdict_tables import NOISE, Arms, alone, base, bases, blocks_of, eight, streamed, terms
from verdict_tables import streams as rivals

from dsa_sandbox.registry import claims, falsifiers
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.comparison import single, stream, variants
from dsa_sandbox.verdict.evidence import Evidence
from dsa_sandbox.verdict.falsifier import Told


def gained(place: int) -> Arms:
    """Single tasks in which the claim is true."""
    return eight(0.1, place)


def both_of(replaced: Arms, place: int) -> Arms:
    """Streams that lose the same, some of them replaced."""
    return rivals(0, 0, place) | replaced


def told(name: str, blocks: list[Block], claim: str = "H2c") -> Told:
    """What a falsifier says of a claim on a table."""
    evidence = Evidence(blocks, terms(claim))
    found: Told = falsifiers[name]().tell(evidence, claims[claim]().comparisons(blocks))
    return found


def plus(more: Callable[[int], Arms], gain: float = 0.1) -> list[Block]:
    """The table of single tasks, with more arms."""
    return blocks_of(lambda place: eight(gain, place) | more(place))


@pytest.mark.parametrize("name", list(falsifiers))
def test_without_cells_nothing_can_be_told(name: str) -> None:
    empty = [Block(100 + place, {}, {}) for place in range(10)]
    for claim in ("H2c", "H2", "H2a"):
        found = told(name, empty, claim)
        assert found.holds is None
        assert found.name == name
        assert found.line


def test_the_interval_of_the_interaction_includes_0_or_not() -> None:
    assert told("interaction", plus(lambda place: {})).holds is False
    found = told("interaction", plus(lambda place: {}, gain=0.0))
    assert found.holds is True
    assert found.as_json()["holds"] == "holds"


def policies(damage: float) -> Callable[[int], Arms]:
    """ACFT on bases with random and window selection, at a damage."""
    keys = [single("dsa", "acft", f"train.selection={one}") for one in ("random", "window")]
    return lambda place: {key: alone([damage - float(NOISE[place])] * 6) for key in keys}


def test_random_selection_equals_learned_selection_or_not() -> None:
    assert told("selection", plus(policies(0.3))).holds is True
    assert told("selection", plus(policies(0.4))).holds is False
    assert told("selection", plus(policies(0.2))).holds is True  # it does better


def test_a_random_mask_equals_that_of_acft_or_not() -> None:
    assert told("random-mask", plus(lambda place: {})).holds is False
    same = plus(lambda place: {single("dsa", "random-mask"): alone([0.3] * 6)})
    for block in same:
        for key in [key for key in block.arms if "draw" in key.variant]:
            del block.arms[key]  # type: ignore[attr-defined]
    assert told("random-mask", same).holds is True


def remedies(damage: float) -> Callable[[int], Arms]:
    """WiSE-FT, a loss on answers and a lower rate, on both architectures, at a damage."""

    def made(place: int) -> Arms:
        found: Arms = {}
        for arch in ("dense", "dsa"):
            found[single(arch, "wise")] = alone([0.9] * 6)
            found[single(arch, "sgd", "finetune.loss=answer")] = alone([0.9] * 6)
            lower = alone([damage] * 6) | {"terms": {"finetune.learning_rate": 1e-4}}
            found[single(arch, "sgd", "finetune.learning_rate=0.0001")] = lower
            plain = alone([0.6] * 6) | {"terms": {"finetune.learning_rate": 1e-3}}
            found[single(arch, "sgd")] = plain
        return found

    return made


def test_a_lower_rate_gives_the_same_or_not() -> None:
    found = told("practice", plus(remedies(0.31)))
    assert found.holds is True
    assert "finetune.learning_rate=0.0001" in found.line
    assert "wise" not in found.line
    assert told("practice", plus(remedies(0.5))).holds is False


def in_order(sign: int) -> Callable[[int], Arms]:
    """Streams in which dsa acft loses less; under another order it loses `sign` times as much."""

    def made(place: int) -> Arms:
        found = rivals(-0.2, -0.2, place)
        for key, one in rivals(-0.2 * sign, -0.2 * sign, place).items():
            found[key._replace(variant="tasks.order=1")] = one
        return found

    return made


def test_another_order_flips_the_ranking_or_not() -> None:
    assert told("order", blocks_of(in_order(1)), "H2").holds is False
    assert told("order", blocks_of(in_order(-1)), "H2").holds is True


def other_rate(gain: float) -> Callable[[int], Arms]:
    """The six arms at another rate of ACFT, where dsa gains so much."""

    def made(place: int) -> Arms:
        found = eight(gain, place)
        return {
            key._replace(variant="finetune.learning_rate=0.01"): one
            for key, one in found.items()
            if key.strategy == "acft"
        }

    return made


def test_the_sign_changes_with_the_rate_or_not() -> None:
    assert told("rate", plus(other_rate(0.05))).holds is False
    assert told("rate", plus(other_rate(-0.05))).holds is True


def test_the_gain_is_one_of_near_items_or_not() -> None:
    assert told("near-items", plus(lambda place: {})).holds is False
    near = plus(lambda place: {single("dsa", "acft"): alone([0.3] * 6, far=[0.41] * 6)})
    assert told("near-items", near).holds is True
    # of a claim on streams, the same arms on single tasks
    both = blocks_of(
        lambda place: (
            eight(0.1, place)
            | rivals(-0.2, -0.2, place)
            | {single("dense", "ewc"): alone([0.2] * 6)}
        )
    )
    assert told("near-items", both, "H2").holds is True
    assert "dsa acft - dense ewc" in told("near-items", both, "H2").line


def test_the_gain_is_one_in_nats_only_or_not() -> None:
    assert told("ratio", plus(lambda place: {})).holds is False
    # .9 to .6 saves more nats than .6 to .4, and the same share
    nats = {single("dsa", "sgd"): alone([0.9] * 6), single("dsa", "acft"): alone([0.605] * 6)}
    assert told("ratio", plus(lambda place: nats)).holds is True


@pytest.mark.parametrize(("share", "holds"), [(0.5, False), (1.1, True)])
def test_the_placebo_explains_the_gain_or_not(share: float, holds: bool) -> None:
    """The placebo of dsa acft does .2 less than the others', or takes all of the gain."""

    def made(place: int) -> Arms:
        found = {}
        for key, one in eight(0.1, place).items():
            if key.strategy in ("sgd", "acft"):
                gained = 0.1 + float(NOISE[place]) if key == single("dsa", "acft") else 0.0
                rest = [
                    task["levels"]["0.7"]["damage"] + gained - share * gained
                    for task in one["trajectories"]
                ]
                found[key._replace(placebo=True)] = alone(rest[:4])  # fewer tasks than its arm
        return found

    # every placebo but that of dsa acft does all of its arm's damage
    assert told("placebo", plus(made)).holds is holds


def test_the_bases_differ_or_not() -> None:
    assert told("bases", blocks_of(gained)).holds is False
    apart = blocks_of(gained, lambda place: bases(0.03))
    assert told("bases", apart).holds is True
    assert "dsa - dense +0.0300 nats" in told("bases", apart).line


def test_own_rows_differ_or_not() -> None:
    same = blocks_of(lambda place: rivals(-0.2, -0.2, place))
    assert told("own-rows", same, "H2").holds is False
    ours = stream("dsa", "acft")
    for value in (0.6, 0.8):
        unequal = {ours: streamed(0.5, 0.3, own_discrimination=value)}
        apart = blocks_of(partial(both_of, unequal))
        assert told("own-rows", apart, "H2").holds is True


@pytest.mark.parametrize(("nll", "holds"), [(0.75, True), (0.80, False)])
def test_selection_is_worth_nothing_or_something(nll: float, holds: bool) -> None:
    names = [f"dsa, train.selection={one}" for one in ("random", "window")]
    one_seed = blocks_of(
        gained, lambda place: bases() | ({name: base(nll) for name in names} if place == 0 else {})
    )
    found = told("worth", one_seed)
    assert found.holds is holds
    assert "seeds: 1" in found.line


def test_a_claim_needs_the_arms_of_its_gating_falsifiers() -> None:
    needed = claims["H2"]().needs()
    assert {single("dsa", "random-mask"), single("dense", "ewc")} <= set(needed)
    assert len(needed) == len(set(needed))
    assert single("dsa", "random-mask") not in claims["H2a"]().needs()
    # of a lower rate the value is free
    assert single("dsa", "sgd", "finetune.learning_rate") in claims["H2e"]().needs()


def test_variants_are_those_in_which_nothing_else_differs() -> None:
    keys = [
        ArmKey("single", "dsa", "replay", variant=text)
        for text in ("replay.pretraining=2, replay.tasks=0", "finetune.loss=answer, replay.tasks=0")
    ]
    block = Block(100, {}, {key: {} for key in keys})
    plain = single("dsa", "replay")
    assert variants([block], plain, "replay.") == ["replay.pretraining=2, replay.tasks=0"]
    assert variants([block], plain, "replay.tasks") == []

"""Terms of a verdict: what is refused before a study starts."""

from typing import Any

import pytest
from pydantic import ValidationError

from dsa_sandbox.config.terms import FIRST_CONFIRMING, SEEDS_NEEDED, Smallest, Terms

SEEDS = tuple(range(100, 110))


def test_ten_seeds_from_100_on_can_confirm() -> None:
    terms = Terms(claims=("H2", "H2c"), level=0.7, seeds=SEEDS)
    assert terms.confirmatory
    assert terms.kept_seeds == SEEDS
    assert terms.smallest == Smallest(damage=0.05, drift=0.10, lost=0.10, equal_bases=0.02)
    assert (SEEDS_NEEDED, FIRST_CONFIRMING) == (10, 100)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"seeds": SEEDS[:9]}, "9 of 10 that a verdict needs; set confirmatory = false"),
    ({"seeds": (9, *SEEDS)}, "9 is for everyday use or development and cannot confirm"),
    ({"seeds": SEEDS, "exclude_seeds": {"103": "the disk was full"}}, "9 of 10"),
    ({"seeds": SEEDS, "exclude_seeds": {"7": "lost"}}, "exclude_seeds.7: not one of the seeds"),
    ({"seeds": (*SEEDS, 110), "exclude_seeds": {"103": " "}}, "say why"),
    ({"seeds": (*SEEDS, 100)}, "a seed is listed twice"),
    ({"seeds": tuple(range(100, 121))}, "at most 20"),
    ({"seeds": SEEDS, "claims": ("H2x",)}, "H2x: no such claim; did you mean H2?"),
    ({"seeds": SEEDS, "claims": ("H2", "H2")}, "a claim is listed twice"),
    ({"seeds": SEEDS, "level": 1.2}, "less than 1"),
    ({"seeds": SEEDS, "smallest": {"damage": 0}}, "greater than 0"),
    ({"seeds": SEEDS, "effect": 0.05}, "Extra inputs"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_terms_that_cannot_decide_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Terms(**values)
    assert said in str(refusal.value)


def test_an_exploratory_study_may_have_any_seeds() -> None:
    assert Terms(seeds=(0, 1), confirmatory=False).kept_seeds == (0, 1)
    terms = Terms(seeds=(0, 1), exclude_seeds={"1": "diverged"}, confirmatory=False)
    assert terms.kept_seeds == (0,)

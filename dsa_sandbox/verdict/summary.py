"""Everything that `--json` says of the comparison of arms; no torch."""

from typing import Any

from dsa_sandbox.registry import statistics
from dsa_sandbox.verdict.contrasts import all_contrasts
from dsa_sandbox.verdict.matching import (
    EQUAL_BASES,
    EXPERIMENTS,
    Results,
    all_pairs,
    arms_of,
    bases_of,
    comparable,
)

SEVERAL = "exploratory: means and intervals over seeds; only a study fixes its claims before"


def statistics_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The rows of every registered statistic that has something to say, by its name."""
    arms = arms_of(results)
    found = {name: statistics[name](arms) for name in statistics}
    return {name: rows for name, rows in found.items() if rows}


def as_json(results: Results) -> dict[str, Any]:
    """Bases, pairs, contrasts and statistics as plain values."""
    arms = arms_of(results)
    bases = bases_of(results)
    pairs = []
    for pair in all_pairs(results):
        match = {"equal_learning": pair.matching.equal, "differs": pair.matching.texts}
        pairs.append({"first": pair.first, "second": pair.second, **match})
    seeds = len({figures["seed"] for figures in arms.values()})
    return {
        "equal_bases": {
            "nll": bases.nll,
            "difference": bases.difference,
            "limit": EQUAL_BASES,
            "equal": bases.equal,
        },
        "pairs": pairs,
        "contrasts": [contrast.as_json() for contrast in all_contrasts(results)],
        "statistics": statistics_of(results),
        "left_out": [text for one in EXPERIMENTS for text in comparable(results, one).left_out],
        "seeds": seeds,
        "verdict": "one seed decides nothing" if seeds == 1 else SEVERAL,
    }

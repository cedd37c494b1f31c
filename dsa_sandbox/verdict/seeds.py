"""Outcomes of arms that were run with several seeds: number of seeds, mean and SD of each."""

import math
import statistics as numbers
from typing import Any

from dsa_sandbox.registry import statistics
from dsa_sandbox.verdict.contrasts import OUTCOMES
from dsa_sandbox.verdict.matching import Results


@statistics.register("seeds")
def over_seeds(arms: Results) -> list[dict[str, Any]]:
    """A row for each arm with two seeds or more; SD is that of a sample (n - 1).

    Runs of one arm and seed on other streams or settings are other experiments: an arm with two
    runs of one seed has no row.
    """
    by_arm: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    for figures in arms.values():
        seeds = by_arm.setdefault((figures["arch"], figures["strategy"]), {})
        seeds.setdefault(figures["seed"], []).append(figures)
    rows = []
    for (arch, strategy), seeds in by_arm.items():
        runs = [found[0] for found in seeds.values()]
        if len(runs) < 2 or any(len(found) > 1 for found in seeds.values()):
            continue
        row: dict[str, Any] = {"arm": f"{arch} {strategy}", "seeds": len(runs)}
        for key in OUTCOMES:
            values = [figures[key] for figures in runs]
            finite = all(math.isfinite(value) for value in values)  # not so in a diverged arm
            row[f"{key}_mean"] = numbers.fmean(values) if finite else math.nan
            row[f"{key}_sd"] = numbers.stdev(values) if finite else math.nan
        rows.append(row)
    return rows

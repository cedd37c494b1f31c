"""Outcomes of arms, and contrasts, that were run with several seeds: mean, interval and p."""

import math
from typing import Any

from dsa_sandbox.registry import statistics
from dsa_sandbox.verdict.contrasts import OUTCOMES, all_contrasts
from dsa_sandbox.verdict.evidence import estimate
from dsa_sandbox.verdict.matching import EXPERIMENTS, Results, competes, of_experiment


@statistics.register("seeds")
def over_seeds(arms: Results) -> list[dict[str, Any]]:
    """Mean, SD and 95 % interval over seeds of every outcome of every arm and contrast.

    SD is that of a sample (n - 1). The interval is that of the exact sign-flip test from six seeds
    on, and Student's t with fewer, where the other is unbounded. Contrasts are paired by seed; p is
    the exact two-sided sign-flip test of a mean of 0. Exploratory: no claim was fixed before.

    An arm with one seed, or with two runs of one seed and experiment (other streams or settings),
    has no row.
    """
    rows = []
    for experiment in EXPERIMENTS:
        named: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for figures in of_experiment(arms, experiment).values():
            if competes(figures):
                seeds = named.setdefault(f"{figures['arch']} {figures['strategy']}", {})
                seeds.setdefault(figures["seed"], []).append(figures)
        for name, seeds in named.items():
            if any(len(found) > 1 for found in seeds.values()):
                continue
            for key in OUTCOMES[experiment]:
                values = [found[0][key] for found in seeds.values()]
                rows += row(name, experiment, key, values, paired=False)
    return rows + contrast_rows(arms)


def contrast_rows(arms: Results) -> list[dict[str, Any]]:
    """A row of every contrast; its values come from arms of one seed and stream each."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for place in dict.fromkeys((one["seed"], one["stream"]) for one in arms.values()):
        block = {name: one for name, one in arms.items() if (one["seed"], one["stream"]) == place}
        for contrast in all_contrasts(block):
            experiment = contrast.as_json()["experiment"]
            for key, value in contrast.values.items():
                values.setdefault((contrast.title, experiment, key), []).append(value)
    return [found for named, listed in values.items() for found in row(*named, listed, paired=True)]


def row(
    name: str, experiment: str, key: str, values: list[float], *, paired: bool
) -> list[dict[str, Any]]:
    """A row of two values or more; NaN where an arm has diverged, p NaN unless `paired`."""
    if len(values) < 2:
        return []
    about = {"arm": name, "experiment": experiment, "figure": key, "seeds": len(values)}
    if not all(math.isfinite(value) for value in values):
        return [about | dict.fromkeys(("mean", "sd", "low", "high", "p"), math.nan)]
    found = estimate(values)
    low, high = found.interval if math.isfinite(found.interval[0]) else found.t_interval
    tested = {"low": low, "high": high, "p": found.p if paired else math.nan}
    return [about | {"mean": found.mean, "sd": found.sd} | tested]

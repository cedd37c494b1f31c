"""Outcomes of arms, and contrasts, that were run with several seeds: mean and SD of each."""

import math
import statistics as numbers
from typing import Any

from dsa_sandbox.registry import statistics
from dsa_sandbox.verdict.contrasts import OUTCOMES, all_contrasts
from dsa_sandbox.verdict.matching import EXPERIMENTS, Results, competes, of_experiment


@statistics.register("seeds")
def over_seeds(arms: Results) -> list[dict[str, Any]]:
    """Mean and SD over seeds of every outcome of every arm and contrast that has two or more.

    SD is that of a sample (n - 1). An arm with two runs of one seed and experiment (other streams
    or settings) has no row.
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
                rows += row(name, experiment, key, [found[0][key] for found in seeds.values()])
    return rows + contrast_rows(arms)


def contrast_rows(arms: Results) -> list[dict[str, Any]]:
    """Mean and SD of every contrast; its values come from arms of one seed and stream each."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for place in dict.fromkeys((one["seed"], one["stream"]) for one in arms.values()):
        block = {name: one for name, one in arms.items() if (one["seed"], one["stream"]) == place}
        for contrast in all_contrasts(block):
            experiment = contrast.as_json()["experiment"]
            for key, value in contrast.values.items():
                values.setdefault((contrast.title, experiment, key), []).append(value)
    return [found for named, listed in values.items() for found in row(*named, listed)]


def row(name: str, experiment: str, key: str, values: list[float]) -> list[dict[str, Any]]:
    """A row with mean and SD of two values or more; NaN where an arm has diverged."""
    if len(values) < 2:
        return []
    finite = all(math.isfinite(value) for value in values)
    return [
        {
            "arm": name,
            "experiment": experiment,
            "figure": key,
            "seeds": len(values),
            "mean": numbers.fmean(values) if finite else math.nan,
            "sd": numbers.stdev(values) if finite else math.nan,
        }
    ]

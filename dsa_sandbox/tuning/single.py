"""Tuning on single tasks: one rate per strategy, shared by all architectures; then the level.

All rates of a grid learn the first development tasks, the shared rate all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsa_sandbox.config.rates import RATE
from dsa_sandbox.listener import Listener
from dsa_sandbox.metrics.figure import NAN
from dsa_sandbox.tuning import choices, grids
from dsa_sandbox.tuning.arms import Arm, Made, figures_of
from dsa_sandbox.tuning.choices import LEVELS, STEPS_LEVEL

CONTROLS = ("dense", "dsa-full")

Figures = dict[str, Any] | None


class Rule(NamedTuple):
    """A strategy with the central rate of its grid and, by architecture, its strength."""

    strategy: str
    centre: float
    strengths: Mapping[str, Mapping[str, float]]  # {} for a strategy without a strength


class Shared(NamedTuple):
    """A strategy's rates and figures, and the rate that was chosen."""

    rule: Rule
    figures: dict[tuple[float, str], Figures]  # on the first tasks, by rate and architecture
    rate: float | None
    edge: str  # lowest, highest, or nothing
    full: Mapping[str, Figures]  # at the chosen rate, on all tasks, by architecture

    @property
    def rates(self) -> list[float]:
        """The rates tried, the lowest first."""
        return sorted({rate for rate, _ in self.figures})


def tuned(
    rules: Sequence[Rule],
    archs: Sequence[str],
    counts: tuple[int, int],
    made: Made,
    listener: Listener,
) -> list[Shared]:
    """The shared rate of each strategy; a grid whose best rate is at its edge is extended once.

    All rates learn the first `counts[0]` tasks, the shared one `counts[1]`.
    """
    few, all_ = counts
    grid = {rule.strategy: grids.single_rates(rule.centre) for rule in rules}
    found = measured(rules, grid, archs, few, made, listener)
    further = {rule.strategy: beyond(chosen(rule, found[rule.strategy])) for rule in rules}
    added = measured(rules, further, archs, few, made, listener)
    shared = [chosen(rule, found[rule.strategy] | added[rule.strategy]) for rule in rules]
    rates = {one.rule.strategy: [] if one.rate is None else [one.rate] for one in shared}
    full = measured(rules, rates, archs, all_, made, listener)
    return [
        one._replace(full={arch: figures for (_, arch), figures in full[one.rule.strategy].items()})
        for one in shared
    ]


def beyond(shared: Shared) -> list[float]:
    """One rate outside the grid, if the chosen rate is at an edge of it; else none."""
    if shared.rate is None:
        return []
    tried = [{RATE: rate} for rate in shared.rates]
    found = grids.beyond({RATE: shared.rate}, tried, [grids.SINGLE_RATE])
    return [config[RATE] for config in found]


def measured(
    rules: Sequence[Rule],
    rates: Mapping[str, Sequence[float]],
    archs: Sequence[str],
    num_tasks: int,
    made: Made,
    listener: Listener,
) -> dict[str, dict[tuple[float, str], Figures]]:
    """Figures of each strategy at each of its rates, by rate and architecture."""
    arms = {
        (rule.strategy, rate, arch): single_arm(rule, rate, arch, num_tasks)
        for rule in rules
        for rate in rates[rule.strategy]
        for arch in archs
    }
    figures = figures_of(list(arms.values()), made, listener)
    found: dict[str, dict[tuple[float, str], Figures]] = {rule.strategy: {} for rule in rules}
    for (strategy, rate, arch), arm in arms.items():
        found[strategy][rate, arch] = figures[arm]
    return found


def single_arm(rule: Rule, rate: float, arch: str, num_tasks: int) -> Arm:
    """An arm of single tasks; its trajectories do not depend on the level."""
    config = ((RATE, rate), *rule.strengths.get(arch, {}).items())
    return Arm(arch, rule.strategy, "single", config, num_tasks, STEPS_LEVEL)


def chosen(rule: Rule, figures: dict[tuple[float, str], Figures]) -> Shared:
    """Choose the shared rate from the figures of the grid; `full` are those at this rate."""
    steps: dict[float, dict[str, float]] = {}
    for (rate, arch), one in figures.items():
        steps.setdefault(rate, {})[arch] = at(one, STEPS_LEVEL)["steps"]
    best = choices.shared_rate(steps)
    edge = ""
    if best is not None:
        tried = [{RATE: rate} for rate in steps]
        edge = grids.edges({RATE: best}, tried, [grids.SINGLE_RATE]).get(RATE, "")
    full = {arch: one for (rate, arch), one in figures.items() if rate == best}
    return Shared(rule, figures, best, edge, full)


def at(figures: Figures, level: float) -> dict[str, float]:
    """Medians at a level; those of an arm without figures are not reached."""
    missing = {"reached": 0.0, "steps": NAN, "damage": NAN}
    return missing if figures is None else missing | figures["by_level"].get(f"{level:g}", {})


def is_primary(arch: str, strategy: str) -> bool:
    """Whether the primary claims H2 and H2c use the arm."""
    return strategy in ("sgd", "acft") or (arch, strategy) == ("dense", "ewc")


def level_of(found: Sequence[Shared], archs: Sequence[str], num_tasks: int) -> float | None:
    """The level of a study at the shared rates; None where no level is reached by all."""
    arms = [
        {level: round(at(one.full.get(arch), level)["reached"] * num_tasks) for level in LEVELS}
        for one in found
        for arch in archs
        if is_primary(arch, one.rule.strategy)
    ]
    return choices.study_level(arms, num_tasks)


def rows(
    found: Sequence[Shared], archs: Sequence[str], counts: tuple[int, int]
) -> list[dict[str, Any]]:
    """A row for each rate and architecture: tasks that reach each level, steps and damage.

    The grid is of the first `counts[0]` tasks; the chosen rows are of all, `counts[1]`.
    """
    few, all_ = counts
    listed = []
    for one in found:
        for rate in one.rates:
            is_chosen = rate == one.rate
            for arch in archs if few < all_ or not is_chosen else ():
                listed.append(row(one, rate, arch, one.figures.get((rate, arch)), few))
            for arch in archs if is_chosen else ():
                full = row(one, rate, arch, one.full.get(arch), all_)
                listed.append({**full, "chosen": True, "edge": one.edge})
    return listed


def row(one: Shared, rate: float, arch: str, figures: Figures, num_tasks: int) -> dict[str, Any]:
    """The row of a rate and architecture on a number of tasks, not chosen."""
    found: dict[str, Any] = {"strategy": one.rule.strategy, "rate": rate, "arch": arch}
    found |= {"tasks": num_tasks, **one.rule.strengths.get(arch, {})}
    for level in LEVELS:
        found[f"reached_{level:g}"] = round(at(figures, level)["reached"] * num_tasks)
    found |= {key: at(figures, STEPS_LEVEL)[key] for key in ("steps", "damage")}
    return {**found, "diverged": figures is None, "chosen": False, "edge": ""}


def interactions(found: Sequence[Shared], level: float) -> list[dict[str, Any]]:
    """H2c at each pair of rates of sgd and acft, for each control: a row each.

    The chosen pair's row is of all tasks, the others of the first ones. Empty where one of the arms
    is not tuned. A pair with an arm that has diverged has no value.
    """
    by_name = {one.rule.strategy: one for one in found}
    if not {"sgd", "acft"} <= by_name.keys():
        return []
    sgd, acft = by_name["sgd"], by_name["acft"]
    archs = {arch for _, arch in sgd.figures}
    listed = []
    for control in [name for name in CONTROLS if {name, "dsa"} <= archs]:
        for slow in sgd.rates:
            for fast in acft.rates:
                is_chosen = (slow, fast) == (sgd.rate, acft.rate)
                arms = {
                    f"{arch} {name}": one.full[arch] if is_chosen else one.figures.get((rate, arch))
                    for arch in ("dsa", control)
                    for name, one, rate in (("sgd", sgd, slow), ("acft", acft, fast))
                }
                value, num_tasks = NAN, 0
                if all(arms.values()):
                    known = {name: figures or {} for name, figures in arms.items()}
                    value, num_tasks = choices.interaction(known, control, level)
                found_row = {"control": control, "rate_sgd": slow, "rate_acft": fast}
                listed.append(
                    {**found_row, "value": value, "tasks": num_tasks, "chosen": is_chosen}
                )
    return listed

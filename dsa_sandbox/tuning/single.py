"""Tuning on single tasks: one rate per strategy, shared by all architectures; then the level."""

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
    figures: dict[tuple[float, str], Figures]  # by rate and architecture
    rate: float | None
    edge: str  # lowest, highest, or nothing

    @property
    def rates(self) -> list[float]:
        """The rates tried, the lowest first."""
        return sorted({rate for rate, _ in self.figures})

    def chosen(self, arch: str) -> Figures:
        """The figures of an architecture at the chosen rate."""
        return None if self.rate is None else self.figures.get((self.rate, arch))


def tuned(
    rules: Sequence[Rule], archs: Sequence[str], num_tasks: int, made: Made, listener: Listener
) -> list[Shared]:
    """The shared rate of each strategy; a grid whose best rate is at its edge is extended once."""
    grid = {rule.strategy: grids.single_rates(rule.centre) for rule in rules}
    found = measured(rules, grid, archs, num_tasks, made, listener)
    further = {rule.strategy: beyond(chosen(rule, found[rule.strategy])) for rule in rules}
    added = measured(rules, further, archs, num_tasks, made, listener)
    return [chosen(rule, found[rule.strategy] | added[rule.strategy]) for rule in rules]


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
    """Choose the shared rate from the figures of the grid."""
    steps: dict[float, dict[str, float]] = {}
    for (rate, arch), one in figures.items():
        steps.setdefault(rate, {})[arch] = at(one, STEPS_LEVEL)["steps"]
    best = choices.shared_rate(steps)
    edge = ""
    if best is not None:
        tried = [{RATE: rate} for rate in steps]
        edge = grids.edges({RATE: best}, tried, [grids.SINGLE_RATE]).get(RATE, "")
    return Shared(rule, figures, best, edge)


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
        {level: round(at(one.chosen(arch), level)["reached"] * num_tasks) for level in LEVELS}
        for one in found
        for arch in archs
        if is_primary(arch, one.rule.strategy)
    ]
    return choices.study_level(arms, num_tasks)


def rows(found: Sequence[Shared], archs: Sequence[str], num_tasks: int) -> list[dict[str, Any]]:
    """A row for each rate and architecture: tasks that reach each level, steps and damage."""
    listed = []
    for one in found:
        for rate in one.rates:
            for arch in archs:
                figures = one.figures.get((rate, arch))
                row: dict[str, Any] = {"strategy": one.rule.strategy, "rate": rate, "arch": arch}
                row |= one.rule.strengths.get(arch, {})
                for level in LEVELS:
                    row[f"reached_{level:g}"] = round(at(figures, level)["reached"] * num_tasks)
                row |= {key: at(figures, STEPS_LEVEL)[key] for key in ("steps", "damage")}
                row |= {"diverged": figures is None, "chosen": rate == one.rate}
                row |= {"edge": one.edge if rate == one.rate else ""}
                listed.append(row)
    return listed


def interactions(found: Sequence[Shared], level: float) -> list[dict[str, Any]]:
    """H2c at each pair of rates of sgd and acft, for each control: a row each.

    Empty where one of the arms is not tuned. A pair with an arm that has diverged has no value.
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
                arms = {
                    f"{arch} {name}": one.figures.get((rate, arch))
                    for arch in ("dsa", control)
                    for name, one, rate in (("sgd", sgd, slow), ("acft", acft, fast))
                }
                value, num_tasks = NAN, 0
                if all(arms.values()):
                    known = {name: figures or {} for name, figures in arms.items()}
                    value, num_tasks = choices.interaction(known, control, level)
                row = {"control": control, "rate_sgd": slow, "rate_acft": fast, "value": value}
                shared = (slow, fast) == (sgd.rate, acft.rate)
                listed.append({**row, "tasks": num_tasks, "chosen": shared})
    return listed

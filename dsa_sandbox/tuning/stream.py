"""Tuning on the stream: each arm its own best of 8 configurations, all on one budget.

All configurations learn the first development tasks, the best three all of them. Where the best one
lies at an edge of what was tried, the values beyond it learn all tasks too, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsa_sandbox.listener import Listener
from dsa_sandbox.metrics.figure import NAN
from dsa_sandbox.tuning import grids
from dsa_sandbox.tuning.arms import Arm, Made, figures_of
from dsa_sandbox.tuning.choices import FINALISTS, Tried, ranked
from dsa_sandbox.tuning.grids import Config

Pair = tuple[str, str]  # architecture and strategy


class Best(NamedTuple):
    """The configurations that an arm has tried, and their ranking."""

    arch: str
    strategy: str
    short: list[Tried]  # on the first tasks
    full: list[Tried]  # on all tasks, the best first
    edges: dict[str, str]  # keys whose best value is the lowest or highest tried

    @property
    def best(self) -> Tried:
        """The chosen configuration."""
        return self.full[0]


def tuned(
    centres: Mapping[Pair, Config],
    counts: tuple[int, int],
    level: float,
    made: Made,
    listener: Listener,
) -> list[Best]:
    """Tune every arm, and return its best configuration.

    All configurations learn the first `counts[0]` tasks, the FINALISTS best of them `counts[1]`.
    """
    few, all_ = counts
    grid = {pair: grids.stream_configs(pair[1], centre) for pair, centre in centres.items()}
    short = measured(grid, few, level, made, listener)
    finalists = {
        pair: [one.config for one in ranked(listed)[:FINALISTS]] for pair, listed in short.items()
    }
    full = measured(finalists, all_, level, made, listener)
    further = {}
    for pair, finals in full.items():
        axes = grids.stream_axes(pair[1])
        further[pair] = grids.beyond(ranked(finals)[0].config, grid[pair], axes)
    added = measured(further, all_, level, made, listener)
    found = []
    for pair in centres:
        listed = ranked(full[pair] + added[pair])
        configs = [*grid[pair], *further[pair]]
        edges = grids.edges(listed[0].config, configs, grids.stream_axes(pair[1]))
        found.append(Best(*pair, short[pair], listed, edges))
    return found


def measured(
    configs: Mapping[Pair, Sequence[Config]],
    num_tasks: int,
    level: float,
    made: Made,
    listener: Listener,
) -> dict[Pair, list[Tried]]:
    """Drift, lost and tasks reached of each configuration of each arm."""
    arms = {
        pair: [Arm(*pair, "stream", tuple(one.items()), num_tasks, level) for one in listed]
        for pair, listed in configs.items()
    }
    figures = figures_of([one for listed in arms.values() for one in listed], made, listener)
    return {pair: [tried(one, figures[one]) for one in listed] for pair, listed in arms.items()}


def tried(one: Arm, figures: dict[str, Any] | None) -> Tried:
    """A configuration with its figures; a diverged arm has reached no task."""
    if figures is None:
        return Tried(one.values, NAN, NAN, 0, one.num_tasks)
    reached = one.num_tasks - int(figures["capped"])
    return Tried(one.values, figures["drift"], figures["lost"], reached, one.num_tasks)


def rows(found: Sequence[Best]) -> list[dict[str, Any]]:
    """A row for each configuration and number of tasks."""
    listed = []
    for arm in found:
        for one in [*arm.short, *arm.full]:
            chosen = one is arm.best
            row: dict[str, Any] = {"arch": arm.arch, "strategy": arm.strategy}
            row |= {"config": dict(one.config), "tasks": one.num_tasks, "reached": one.reached}
            row |= {"drift": one.drift, "lost": one.lost, "sum": one.sum, "chosen": chosen}
            listed.append({**row, "edges": arm.edges if chosen else {}})
    return listed

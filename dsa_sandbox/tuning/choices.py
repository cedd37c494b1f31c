"""What tuning chooses from the figures of its arms; pure functions.

A figure that an arm lacks (NaN) is one that it has not reached.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.metrics.single import per_task
from dsa_sandbox.tuning.grids import Config

STEPS = 60  # to STEPS_LEVEL, for the slowest architecture at the shared rate
STEPS_LEVEL = 0.7
LEVELS = (0.8, 0.7, 0.6)  # of a study, the best first
ENOUGH = Fraction(11, 12)  # of the development tasks
DRIFT, LOST = 0.10, 0.10  # smallest effects of interest: the units of a stream's two outcomes
FINALISTS = 3  # configurations that learn all development tasks


def needed(num_tasks: int) -> int:
    """The number of tasks that an arm has to reach a level in: 11 of 12."""
    return math.ceil(ENOUGH * num_tasks)


# --- single tasks ---------------------------------------------------------------------------------


def slowest(steps: Mapping[str, float]) -> float:
    """Steps of the slowest architecture; infinite where one does not reach the level."""
    return max((math.inf if math.isnan(value) else value for value in steps.values()), default=0.0)


def shared_rate(steps: Mapping[float, Mapping[str, float]]) -> float | None:
    """The rate whose slowest architecture is nearest to STEPS; None where none reaches the level.

    `steps`: by rate and architecture the median of steps to STEPS_LEVEL, NaN where half of the
    tasks do not reach it. Of two rates equally near, the lower one, which does less damage.
    """
    far = {rate: abs(slowest(by_arch) - STEPS) for rate, by_arch in steps.items()}
    finite = [rate for rate, distance in far.items() if math.isfinite(distance)]
    return min(finite, key=lambda rate: (far[rate], rate), default=None)


def study_level(reached: Sequence[Mapping[float, int]], num_tasks: int) -> float | None:
    """The highest of LEVELS that every arm reaches in `needed` tasks; None where there is none.

    `reached`: for each arm the number of tasks that reach a level, by level.
    """
    for level in LEVELS:
        if reached and all(arm[level] >= needed(num_tasks) for arm in reached):
            return level
    return None


def interaction(
    arms: Mapping[str, Mapping[str, Any]], control: str, level: float
) -> tuple[float, int]:
    """[dsa acft - dsa sgd] - [control acft - control sgd] of damage at a level, nats per token.

    The median over the tasks that all four arms reach the level in, and their number; `arms` are
    figures by "arch strategy".
    """
    signs = {"dsa acft": 1, "dsa sgd": -1, f"{control} acft": -1, f"{control} sgd": 1}
    with np.errstate(invalid="ignore"):  # infinite minus infinite: a task that two arms miss
        by_task = sum(sign * per_task(dict(arms[name]), level) for name, sign in signs.items())
    known = np.asarray(by_task)[np.isfinite(by_task)]
    return (float(np.median(known)) if known.size else math.nan), int(known.size)


# --- the stream -----------------------------------------------------------------------------------


class Tried(NamedTuple):
    """A configuration of an arm, with the figures of its stream of development tasks."""

    config: Config
    drift: float  # nats per token
    lost: float  # discrimination
    reached: int  # tasks that reached the level
    num_tasks: int

    @property
    def sum(self) -> float:
        """drift/.10 + lost/.10; infinite where one of them is not known."""
        total = self.drift / DRIFT + self.lost / LOST
        return total if math.isfinite(total) else math.inf

    @property
    def enough(self) -> bool:
        """Whether enough tasks reached the level."""
        return self.reached >= needed(self.num_tasks)


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The best first: with enough tasks, by the least sum; then by most tasks, then by the sum.

    Equal ones stay in their order.
    """

    def place(one: Tried) -> tuple[bool, int, float]:
        return not one.enough, 0 if one.enough else -one.reached, one.sum

    return sorted(tried, key=place)

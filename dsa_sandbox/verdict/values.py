"""The value of a block: what one seed says of a comparison; no torch.

Of a stream, the signed sum of the arms' figures. Of single tasks, the signed sum task by task, then
the median over tasks. Failures count against the hypothesis: a task that its own arm misses is
+infinity, one that only other arms miss is left out. For a refutation, only tasks count that all
arms reach. A run that diverged is a failure.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.metrics import placebo, single
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.comparison import Comparison, draws

LEAST_DAMAGE = 0.01  # nats: below, a logarithm would show noise
Measure = Callable[[Block, ArmKey], np.ndarray]  # [T]: infinite if missed, NaN if unknown


class BlockValue(NamedTuple):
    """A comparison in one block; NaN where the block has no usable task, or no such arm."""

    support: float  # may be infinite
    refuting: float
    tasks: int  # that all arms reach; of a stream, its length
    missed: float = 0.0  # share of the tasks that at least one arm misses
    missed_by: tuple[str, ...] = ()  # arms that miss tasks


class Values(NamedTuple):
    """A comparison over blocks, as it enters the tests."""

    support: np.ndarray  # finite, one for each usable block
    refuting: np.ndarray
    seeds: list[int]  # of `support`
    infinite: int  # blocks at +infinity, entered as a finite value
    left_out: int  # blocks without a usable task


def level_of(arm: Any, level: float | None) -> float:
    """The study's level, or where it has none, that of the arm's settings."""
    return float(arm["level"]) if level is None else level


def damage(level: float | None) -> Measure:
    """Damage at the level, nats per token, by task; the median over draws of a mask."""

    def measure(block: Block, key: ArmKey) -> np.ndarray:
        arms = [block.arms[one] for one in draws(block, key)]
        return over_draws([single.per_task(arm, level_of(arm, level)) for arm in arms])

    return measure


def far_damage(level: float | None) -> Measure:
    """As `damage`, where the discrimination without near items reaches the level."""

    def measure(block: Block, key: ArmKey) -> np.ndarray:
        arms = [block.arms[one] for one in draws(block, key)]
        return over_draws([single.far_per_task(arm, level_of(arm, level)) for arm in arms])

    return measure


def log_damage(level: float | None) -> Measure:
    """log max(damage, LEAST_DAMAGE) by task: its differences are ratios of damage."""
    nats = damage(level)

    def measure(block: Block, key: ArmKey) -> np.ndarray:
        return np.log(np.maximum(nats(block, key), LEAST_DAMAGE))

    return measure


def damage_without_placebo(level: float | None) -> Measure:
    """Damage less that of the placebo at the same steps, by task; NaN without a placebo."""

    def measure(block: Block, key: ArmKey) -> np.ndarray:
        found = []
        for one in draws(block, key):
            arm, other = block.arms[one], block.arms.get(one._replace(placebo=True))
            at = level_of(arm, level)
            whole = single.per_task(arm, at)
            there = np.full(len(whole), np.nan)
            if other is not None:  # a placebo may have fewer tasks
                known = placebo.per_task(arm, other, f"{at:g}")
                there[: len(known)] = known
            missed = np.isinf(whole)
            found.append(np.where(missed, whole, whole - np.where(missed, 0.0, there)))
        return over_draws(found)

    return measure


def over_draws(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The median over draws [T]; a draw that misses a task is infinite there."""
    if not arrays:
        return np.zeros(0)
    if len(arrays) == 1:
        return np.asarray(arrays[0], float)
    return np.median(np.stack(arrays), axis=0)


def of_tasks(by_arm: Sequence[np.ndarray], signs: Sequence[int]) -> BlockValue:
    """The block's value from the arms' tasks [T], the hypothesis' own arm first."""
    if not all(len(tasks) for tasks in by_arm):
        return BlockValue(math.nan, math.nan, 0)
    matrix = np.stack(by_arm)
    missed_AT = np.isinf(matrix)
    known_T = ~np.isnan(matrix).any(0)
    own_T, missed_T = known_T & missed_AT[0], known_T & missed_AT.any(0)
    finite = np.where(missed_AT, 0.0, matrix)
    sums_T = np.asarray(signs) @ np.nan_to_num(finite)
    support_T = np.where(own_T, np.inf, sums_T)[known_T & (own_T | ~missed_T)]
    reached_T = known_T & ~missed_T
    return BlockValue(
        support=float(np.median(support_T)) if len(support_T) else math.nan,
        refuting=float(np.median(sums_T[reached_T])) if reached_T.any() else math.nan,
        tasks=int(reached_T.sum()),
        missed=float(missed_T.sum() / known_T.sum()) if known_T.any() else 0.0,
    )


def in_single_tasks(block: Block, comparison: Comparison, measure: Measure) -> BlockValue:
    """The block's value of a comparison of single tasks."""
    by_arm = [measure(block, key) for key in comparison.arms]
    found = of_tasks(by_arm, [sign for sign, _ in comparison.signed])
    missing = [key.named for key, tasks in zip(comparison.arms, by_arm) if np.isinf(tasks).any()]
    return found._replace(missed_by=tuple(dict.fromkeys(missing)))


def stream_figure(arm: Any, outcome: str) -> float:
    """A figure of a stream; infinite where the arm has diverged."""
    value = float(arm[outcome])
    diverged = arm.get("diverged_after") is not None or not math.isfinite(value)
    return math.inf if diverged else value


def in_stream(block: Block, comparison: Comparison, outcome: str) -> BlockValue:
    """The block's value of a comparison of streams, `outcome` one of drift and lost."""
    by_arm = []
    for key in comparison.arms:
        found = [stream_figure(block.arms[one], outcome) for one in draws(block, key)]
        by_arm.append(np.array([np.median(found)]) if found else np.zeros(0))
    value = of_tasks(by_arm, [sign for sign, _ in comparison.signed])
    own = block.arms.get(comparison.own, {})
    return value._replace(tasks=int(own.get("tasks", 0)))


def values_of(blocks: Sequence[Block], found: Sequence[BlockValue], least: float) -> Values:
    """The blocks' values as they enter the tests.

    A block at +infinity enters as max(largest finite |value|, `least`).
    """
    usable = [(block.seed, one.support) for block, one in zip(blocks, found)]
    usable = [(seed, value) for seed, value in usable if not math.isnan(value)]
    support = np.array([value for _, value in usable], float)
    infinite = np.isinf(support)
    largest = np.abs(support[~infinite]).max(initial=least)
    refuting = np.array([one.refuting for one in found], float)
    return Values(
        support=np.where(infinite, largest, support),
        refuting=refuting[~np.isnan(refuting)],
        seeds=[seed for seed, _ in usable],
        infinite=int(infinite.sum()),
        left_out=len(found) - len(usable),
    )

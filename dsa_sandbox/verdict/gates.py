"""When arms may not be compared, and when another arm is better in everything; no torch.

Each function gives its reason in one sentence, or None.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from dsa_sandbox.verdict import values
from dsa_sandbox.verdict.blocks import ArmKey, Block, Experiment
from dsa_sandbox.verdict.comparison import Comparison, draws
from dsa_sandbox.verdict.evidence import Component, Evidence
from dsa_sandbox.verdict.inference.equivalence import tost
from dsa_sandbox.verdict.rules import ALPHA

MOST_MISSED = 1 / 3  # share of a block's single tasks
MOST_CAPPED = 0.1  # share of the tasks of an arm's streams, pooled over blocks
BLOCKS = 2  # in so many, a fault is more than an accident
TESTED_BASES = ("dsa", "dense")  # H1's test


def base_nll(block: Block, name: str) -> float:
    """Held-out NLL of a base, nats per token; NaN where the block lacks it."""
    base = block.bases.get(name)
    return math.nan if base is None else float(base["valid"]["nll"])


def nll_differences(blocks: Iterable[Block], first: str, second: str) -> np.ndarray:
    """NLL of the first base - that of the second, for each block that has both."""
    found = np.array([base_nll(block, first) - base_nll(block, second) for block in blocks])
    return found[~np.isnan(found)]


def unequal_bases(evidence: Evidence, archs: Sequence[str]) -> str | None:
    """Why the bases of dsa and dense do not count as equal, where a claim compares both."""
    if not set(TESTED_BASES) <= set(archs):
        return None
    found, margin = (
        nll_differences(evidence.blocks, *TESTED_BASES),
        evidence.smallest("equal_bases"),
    )
    if len(found) == 0:
        return "the held-out NLL of the bases is not known"
    p = tost(found.tolist(), margin)
    if p <= ALPHA:
        return None
    return (
        f"the bases are not shown to be equal: held-out NLL of dsa - dense is {found.mean():+.4f} "
        f"nats on average, and the test that it lies within {margin:g} has p = {p:.3f}"
    )


def closed_gates(evidence: Evidence, archs: Sequence[str]) -> str | None:
    """In which blocks a base does not let a world's name decide."""
    closed = []
    for block in evidence.blocks:
        here = [arch for arch in archs if arch in block.bases]
        shut = [arch for arch in here if not block.bases[arch]["gate"]["open"]]
        if shut:
            closed.append(f"{block.seed} ({', '.join(shut)})")
    if len(closed) < BLOCKS:
        return None
    return f"worlds are not worlds to the bases of seeds {', '.join(closed)}: their gate is closed"


def too_many_missed(evidence: Evidence, component: Component) -> str | None:
    """In which blocks more than a third of the single tasks are missed by an arm."""
    blocks = [
        (block.seed, one)
        for block, one in zip(evidence.blocks, component.blocks)
        if one.missed > MOST_MISSED
    ]
    if component.outcome != "damage" or len(blocks) < BLOCKS:
        return None
    arms = dict.fromkeys(name for _, one in blocks for name in one.missed_by)
    seeds = ", ".join(str(seed) for seed, _ in blocks)
    return (
        f"more than a third of the tasks never reach the level in seeds {seeds}: "
        f"{', '.join(arms)} missed some"
    )


def capped_arms(evidence: Evidence, comparison: Comparison) -> str | None:
    """Which arms of streams ended too many tasks below the level, of all blocks together."""
    told = []
    for key in comparison.arms:
        capped = tasks = 0
        for block in evidence.blocks:
            for one in draws(block, key):
                arm = block.arms[one]
                capped += 0 if math.isnan(arm["capped"]) else int(arm["capped"])
                tasks += int(arm["tasks"])
        if tasks and capped > MOST_CAPPED * tasks:
            told.append(f"{key.named} ended {capped} of {tasks} tasks below the level")
    return "; ".join(told) or None


def dominating(evidence: Evidence, own: ArmKey, others: Iterable[ArmKey]) -> str | None:
    """Which other arm learns more tasks and loses less, in all blocks but one at most."""
    for other in others:
        better = sum(is_better(block, own, other, evidence) for block in evidence.blocks)
        if better and better >= len(evidence.blocks) - 1:
            loses = "is damaged less" if own.experiment == "single" else "loses and drifts less"
            return (
                f"{other.named} learns more tasks and {loses} than {own.named} in {better} of "
                f"{len(evidence.blocks)} seeds"
            )
    return None


def is_better(block: Block, own: ArmKey, other: ArmKey, evidence: Evidence) -> bool:
    """Whether the other arm learns more tasks of a block and loses less.

    Single tasks: less damage at the level, in the median over tasks that both reach; with none of
    these, reaching a task is enough. Streams: less drift, and less lost.
    """
    if not (draws(block, own) and draws(block, other)):
        return False
    if own.experiment == "stream":
        learned = [learned_share(block, key) for key in (own, other)]
        falls = [
            values.in_stream(block, Comparison("", ((1, own), (-1, other))), outcome).support
            for outcome in ("drift", "lost")
        ]
        return learned[1] > learned[0] and min(falls) > 0
    measure = values.damage(evidence.terms.level)
    ours, theirs = measure(block, own), measure(block, other)
    reached = [np.isfinite(one) for one in (ours, theirs)]
    both = reached[0] & reached[1]
    less = np.median(ours[both] - theirs[both]) > 0 if both.any() else True
    return bool(reached[1].sum() > reached[0].sum() and less)


def learned_share(block: Block, key: ArmKey) -> float:
    """The share of a stream's tasks that an arm learned; the median over draws of a mask."""
    return float(np.median([block.arms[one]["learned"] for one in draws(block, key)]))


def archs_of(comparisons: Iterable[Comparison]) -> list[str]:
    """The architectures that comparisons compare, each once."""
    return list(dict.fromkeys(arch for one in comparisons for arch in one.archs))


def experiments_of(comparisons: Iterable[Comparison]) -> set[Experiment]:
    """The experiments of comparisons."""
    return {key.experiment for one in comparisons for key in one.arms}

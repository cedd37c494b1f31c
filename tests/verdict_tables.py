"""Blocks made by hand: figures of bases and arms, as far as a verdict looks at them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dsa_sandbox.config.terms import Terms
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.comparison import single, stream

LEVEL = 0.7
SEEDS = tuple(range(100, 110))
Figures = dict[str, Any]
Arms = dict[ArmKey, Figures]
# a fixed pattern of noise over ten blocks, mean 0, SD .021
NOISE = 0.02 * np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1])


def terms(*claims: str, seeds: Sequence[int] = SEEDS, **more: Any) -> Terms:
    """Terms of a study with these claims at LEVEL."""
    return Terms(claims=claims, level=LEVEL, seeds=tuple(seeds), **more)


def reading(damage: float) -> Figures | None:
    """A task's figures at the level; infinite: it does not reach it."""
    if math.isinf(damage):
        return None
    return {"damage": damage, "place": {"from_step": 0, "to_step": 4, "share": 1.0}}


def alone(damages: Sequence[float], far: Sequence[float] | None = None) -> Figures:
    """An arm of single tasks from its damages by task, and those without near items."""
    far = damages if far is None else far
    finite = [damage for damage in damages if math.isfinite(damage)]
    trajectories = [
        {
            "levels": {f"{LEVEL:g}": reading(damage)},
            "far_levels": {f"{LEVEL:g}": one if math.isfinite(one) else None},
            "dnll": {0: 0.0, 4: damage},
        }
        for damage, one in zip(damages, far)
    ]
    middle = float(np.median(damages))
    return {
        "experiment": "single",
        "level": LEVEL,
        "tasks": len(damages),
        "reached": len(finite) / len(damages),
        "trajectories": trajectories,
        "damage": middle if math.isfinite(middle) else math.nan,
    }


def streamed(drift: float, lost: float, **more: Any) -> Figures:
    """An arm of a stream of 12 tasks."""
    plain = {"experiment": "stream", "level": LEVEL, "tasks": 12, "capped": 0, "learned": 1.0}
    plain |= {"diverged_after": None, "own_discrimination": 0.7}
    return {**plain, "drift": drift, "lost": lost, **more}


def base(nll: float, *, gate: bool = True, known: int = 115, hit: float = 0.5) -> Figures:
    """A base that passes every test of H1, but for what is said otherwise."""
    row = {"of": "names", "distance": 16, "hit": hit, "hit_chance": 0.2}
    return {
        "valid": {"nll": nll},
        "gate": {"open": gate},
        "known_facts": known,
        "asked_facts": 120,
        "pairs": {"pronoun": 0.9, "agreement": 0.95},
        "pairs_bigram": {"pronoun": 0.5, "agreement": 0.5},
        "far_worlds": {"by_layer": [hit, hit], "chance": 0.2},
        "recall": [row],
    }


def bases(noise: float = 0.0, **of_dsa: Any) -> dict[str, Figures]:
    """Bases of dense, dsa and dsa-full, `noise` apart."""
    return {"dense": base(0.74), "dsa": base(0.74 + noise, **of_dsa), "dsa-full": base(0.74)}


def blocks_of(
    arms: Callable[[int], Mapping[ArmKey, Figures]],
    with_bases: Callable[[int], Mapping[str, Figures]] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> list[Block]:
    """A block for each seed; both functions are given its place in the list."""
    make = with_bases or (lambda place: bases(0.001 * (place % 3)))
    return [Block(seed, make(place), arms(place)) for place, seed in enumerate(seeds)]


def eight(gain: float, place: int, tasks: int = 6) -> Arms:
    """Single tasks in which ACFT saves .2 nats everywhere, and in dsa `gain` more."""
    noise = float(NOISE[place])
    spread = np.linspace(-0.03, 0.03, tasks)
    arms = {}
    for arch in ("dense", "dsa", "dsa-full"):
        arms[single(arch, "sgd")] = alone((0.6 + spread).tolist())
        more = gain + noise if arch == "dsa" else 0.0
        arms[single(arch, "acft")] = alone((0.4 - more + spread).tolist())
    arms[single("dsa", "random-mask", "random-mask.draw=0")] = alone((0.6 + spread).tolist())
    arms[single("dsa", "random-mask", "random-mask.draw=1")] = alone((0.5 + spread).tolist())
    arms[single("dsa", "random-mask", "random-mask.draw=2")] = alone((0.55 + spread).tolist())
    return arms


def streams(lost: float, drift: float, place: int, **ours: Any) -> Arms:
    """Streams in which dsa acft loses `lost` and drifts `drift` more than both rivals."""
    noise = float(NOISE[place])
    arms = {stream("dsa", "acft"): streamed(0.5 + drift + noise, 0.3 + lost + noise, **ours)}
    for name in ("ewc", "sgd"):
        arms[stream("dense", name)] = streamed(0.5, 0.3)
    return arms

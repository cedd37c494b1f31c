"""The values that tuning tries: rates by factors of 2, and an arm's 8 configurations.

A configuration is {flat key: value}, the learning rate first. A strategy with a strength of its own
(its knob) has 2 rates x 4 strengths, any other 8 rates.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dsa_sandbox.config.rates import RATE

Config = Mapping[str, float]
SINGLE_STEPS = (-2, -1, 0, 1)  # powers of 2 of the centre's rate
STREAM_STEPS = (-4, -3, -2, -1, 0, 1, 2, 3)  # powers of sqrt 2
RATES_BESIDE_A_KNOB = (0, 2)  # powers of sqrt 2: rates a factor of 2 apart
KNOB_STEPS = (-2, -1, 0, 1)  # powers of the knob's factor


class Axis(NamedTuple):
    """A setting that is tried at several values."""

    key: str
    factor: float
    is_share: bool = False  # in (0, 1): the odds are multiplied

    def scale(self, value: float) -> float:
        """The value, or the odds of a share: what is multiplied from one value to the next."""
        return value / (1 - value) if self.is_share else value

    def value(self, scale: float) -> float:
        """The value of this scale, in three digits."""
        return float(f"{scale / (1 + scale) if self.is_share else scale:.3g}")

    def moved(self, value: float, steps: float) -> float:
        """A value so many steps away."""
        return self.value(self.scale(value) * self.factor**steps)


SINGLE_RATE, STREAM_RATE = Axis(RATE, 2.0), Axis(RATE, 2**0.5)
KNOBS = {
    **{
        name: Axis(f"{name}.strength", 10**0.5)
        for name in ("ewc", "ewc-proximal", "l2sp", "si", "mas", "lwf", "der")
    },
    "wise": Axis("wise.alpha", 2.0, is_share=True),
    "gpm": Axis("gpm.threshold", 2.0, is_share=True),
}


def knob_of(strategy: str) -> Axis | None:
    """The knob of a strategy; of a combination, that of the first part that has one."""
    return next((KNOBS[part] for part in strategy.split("+") if part in KNOBS), None)


def single_rates(centre: float) -> list[float]:
    """The rates tried on single tasks."""
    return [SINGLE_RATE.moved(centre, steps) for steps in SINGLE_STEPS]


def stream_axes(strategy: str) -> list[Axis]:
    """What is varied for an arm of the stream."""
    knob = knob_of(strategy)
    return [STREAM_RATE, *([knob] if knob else [])]


def stream_configs(strategy: str, centre: Config) -> list[Config]:
    """The 8 configurations of an arm; `centre` holds its rate, and its knob where it has one."""
    knob = knob_of(strategy)
    steps = RATES_BESIDE_A_KNOB if knob else STREAM_STEPS
    rates = [STREAM_RATE.moved(centre[RATE], step) for step in steps]
    if knob is None:
        return [{RATE: rate} for rate in rates]
    values = [knob.moved(centre[knob.key], step) for step in KNOB_STEPS]
    return [{RATE: rate, knob.key: value} for rate in rates for value in values]


def edges(best: Config, tried: Iterable[Config], axes: Sequence[Axis]) -> dict[str, str]:
    """The keys whose best value is the lowest or the highest tried, and which of both."""
    found = {}
    listed = list(tried)
    for axis in axes:
        values = sorted({config[axis.key] for config in listed})
        if len(values) > 1 and best[axis.key] in (values[0], values[-1]):
            found[axis.key] = "lowest" if best[axis.key] == values[0] else "highest"
    return found


def beyond(best: Config, tried: Iterable[Config], axes: Sequence[Axis]) -> list[Config]:
    """The configurations beyond each edge that the best lies on, as far as its neighbour is."""
    listed = list(tried)
    found: list[Config] = []
    for axis in axes:
        if axis.key in edges(best, listed, [axis]):
            others = {config[axis.key] for config in listed} - {best[axis.key]}
            nearest = min(others, key=lambda value: abs(value - best[axis.key]))
            ratio = axis.scale(best[axis.key]) / axis.scale(nearest)
            found.append({**best, axis.key: axis.value(axis.scale(best[axis.key]) * ratio)})
    return found

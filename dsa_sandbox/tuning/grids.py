"""The values that tuning tries: rates by factors of 2, and an arm's 8 configurations.

A configuration is {flat key: value}, the learning rate first. A strategy with a strength of its own
(STRENGTHS; a share or threshold for some) has 2 rates x 4 strengths, any other 8 rates.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dsa_sandbox.config.rates import RATE

Config = Mapping[str, float]
SINGLE_STEPS = (-2, -1, 0, 1)  # powers of 2 of the centre's rate
STREAM_STEPS = (-4, -3, -2, -1, 0, 1, 2, 3)  # powers of sqrt 2
RATES_BESIDE_A_STRENGTH = (0, 2)  # powers of sqrt 2: rates a factor of 2 apart
STRENGTH_STEPS = (-2, -1, 0, 1)  # powers of the strength's factor


class Axis(NamedTuple):
    """A setting that is tried at several values."""

    key: str
    factor: float
    is_share: bool = False  # in (0, 1): the odds are multiplied

    def scale(self, value: float) -> float:
        """The quantity that each step of the grid multiplies: the value, or the odds of a share."""
        return value / (1 - value) if self.is_share else value

    def value(self, scale: float) -> float:
        """The inverse of `scale`, rounded to three digits."""
        return float(f"{scale / (1 + scale) if self.is_share else scale:.3g}")

    def moved(self, value: float, steps: float) -> float:
        """The value `steps` steps of the grid higher (negative: lower)."""
        return self.value(self.scale(value) * self.factor**steps)


SINGLE_RATE, STREAM_RATE = Axis(RATE, 2.0), Axis(RATE, 2**0.5)
STRENGTHS = {
    **{
        name: Axis(f"{name}.strength", 10**0.5)
        for name in ("ewc", "ewc-proximal", "l2sp", "si", "mas", "lwf", "der")
    },
    "wise": Axis("wise.alpha", 2.0, is_share=True),
    "gpm": Axis("gpm.threshold", 2.0, is_share=True),
}


def strength_of(strategy: str) -> Axis | None:
    """The strength of a strategy; of a combination, that of the first part that has one."""
    return next((STRENGTHS[part] for part in strategy.split("+") if part in STRENGTHS), None)


def single_rates(centre: float) -> list[float]:
    """The rates tried on single tasks."""
    return [SINGLE_RATE.moved(centre, steps) for steps in SINGLE_STEPS]


def stream_axes(strategy: str) -> list[Axis]:
    """The settings that tuning on the stream varies: the rate, and a strength if there is one."""
    strength = strength_of(strategy)
    return [STREAM_RATE, *([strength] if strength else [])]


def stream_configs(strategy: str, centre: Config) -> list[Config]:
    """The 8 configurations of an arm; `centre` holds its rate and its strength."""
    strength = strength_of(strategy)
    steps = RATES_BESIDE_A_STRENGTH if strength else STREAM_STEPS
    rates = [STREAM_RATE.moved(centre[RATE], step) for step in steps]
    if strength is None:
        return [{RATE: rate} for rate in rates]
    values = [strength.moved(centre[strength.key], step) for step in STRENGTH_STEPS]
    return [{RATE: rate, strength.key: value} for rate in rates for value in values]


def edges(best: Config, tried: Iterable[Config], axes: Sequence[Axis]) -> dict[str, str]:
    """For each setting whose best value is at an edge of the grid: `lowest` or `highest`."""
    found = {}
    listed = list(tried)
    for axis in axes:
        values = sorted({config[axis.key] for config in listed})
        if len(values) > 1 and best[axis.key] in (values[0], values[-1]):
            found[axis.key] = "lowest" if best[axis.key] == values[0] else "highest"
    return found


def beyond(best: Config, tried: Iterable[Config], axes: Sequence[Axis]) -> list[Config]:
    """For each edge of the grid that holds the best value, one configuration a step outside."""
    listed = list(tried)
    found: list[Config] = []
    for axis in axes:
        if axis.key in edges(best, listed, [axis]):
            others = {config[axis.key] for config in listed} - {best[axis.key]}
            nearest = min(others, key=lambda value: abs(value - best[axis.key]))
            ratio = axis.scale(best[axis.key]) / axis.scale(nearest)
            found.append({**best, axis.key: axis.value(axis.scale(best[axis.key]) * ratio)})
    return found

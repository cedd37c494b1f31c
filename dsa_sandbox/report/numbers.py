"""Numbers as text: one form for each unit, `-` where there is no value."""

import math

from dsa_sandbox.metrics.figure import Unit
from dsa_sandbox.metrics.forgetting import DIVERGED

DIGITS: dict[Unit, int] = {
    "probability": 2,
    "nats": 2,
    "nats per token": 3,
    "bits per byte": 3,
    "steps": 0,
    "count": 0,
}
LARGEST = 1e5  # larger numbers show their magnitude only


def formatted(value: float | None, form: str) -> str:
    """A number in a format of Python, `-` for none; a very large one as its magnitude."""
    if value is None or math.isnan(value):
        return "-"
    return format(value, form) if abs(value) < LARGEST else format(value, f"{form[:-3]}.0e")


def number(value: float | None, digits: int = 2) -> str:
    """A number with this many decimals."""
    return formatted(value, f".{digits}f")


def signed(value: float | None, digits: int) -> str:
    """A number with its sign and this many decimals."""
    return formatted(value, f"+.{digits}f")


def ratio(value: float | None) -> str:
    """A ratio; `>999` for that of a diverged arm."""
    return f">{DIVERGED:.0f}" if value is not None and value > DIVERGED else number(value)


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0%}" if abs(value) < 10 else ">999%" if value > 0 else "<-999%"


def duration(seconds: float) -> str:
    """Seconds as `55s`, `37m` or `3h05m`."""
    if seconds < 600:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def compact(value: float) -> str:
    """A count as `1,500`, `0.08M` or `104M`."""
    if value < 10_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:.2f}M" if value < 1e8 else f"{value / 1e6:.0f}M"


def in_unit(value: float | None, unit: Unit) -> str:
    """A figure as tables show it; a difference of NLL always has its sign."""
    if value is None or math.isnan(value):
        return "-"
    if unit == "share":
        return percent(value)
    if unit == "ratio":
        return ratio(value)
    if unit == "s":
        return duration(value)
    if unit == "count":
        return compact(value)
    if unit == "MB":
        return f"{number(value, 1)}MB"
    return number(value, DIGITS[unit])

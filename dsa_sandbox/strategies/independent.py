"""Trains on each task alone, starting from the base (single-task upper bound)."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("independent")
class Independent(Strategy):
    """Upper bound of learning: row j + 1 holds task j alone."""

    role = "bound"
    protocol = "independent"

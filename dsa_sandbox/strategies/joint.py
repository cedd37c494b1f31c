"""Trains on all tasks at once (multi-task upper bound)."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("joint")
class Joint(Strategy):
    """One stage of max_steps per task; it ends when all tasks are learned."""

    role = "bound"
    protocol = "joint"

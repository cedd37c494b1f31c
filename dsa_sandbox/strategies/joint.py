"""All tasks at once: what could be learned if nothing came first and nothing last."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("joint")
class Joint(Strategy):
    """One stage of max_steps for each task; it ends when all are learned."""

    role = "bound"
    course = "together"

"""Sequential fine-tuning: every weight, one task after another, nothing remembered."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("sgd")
class Sequential(Strategy):
    """The lower bound of continual learning: its rule is plain, the optimiser common to all."""

"""Sequential fine-tuning: trains all weights, one task after another (AdamW by default)."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("sgd")
class Sequential(Strategy):
    """Lower bound of continual learning: the language loss alone, without memory."""

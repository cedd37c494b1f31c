"""No training: measures the base on the stream."""

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainable


@strategies.register("none")
class Nothing(Strategy):
    """Upper bound of retention and lower bound of learning."""

    role = "bound"
    protocol = "none"

    def trainable(self, model: Transformer) -> Trainable:
        return Trainable({})

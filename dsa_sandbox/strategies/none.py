"""No step at all: what the stream finds in the base."""

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("none")
class Nothing(Strategy):
    """The ceiling of retention and the floor of learning."""

    role = "bound"
    course = "nothing"

    def moves(self, model: Transformer) -> dict[str, float]:
        return {}

"""Each task alone, from the base: how well it is learned where nothing has to be kept."""

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


@strategies.register("independent")
class Independent(Strategy):
    """The ceiling of learning: row j + 1 holds task j and no other."""

    role = "bound"
    course = "apart"

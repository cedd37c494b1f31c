"""Trains all attention matrices but the indexer's; freezes everything else."""

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.masks import MaskSettings


@strategies.register("attention-only")
class AttentionOnly(Strategy):
    """Is it enough to leave norms, feed-forward and embedding alone? Both flows are trained."""

    Settings = MaskSettings
    role = "mask"

    def moves(self, model: Transformer) -> dict[str, float]:
        names = (
            name
            for name, parameter in model.named_parameters()
            if "attention" in name.split(".") and parameter.dim() > 1
        )
        return {name: self.settings.rate for name in names if group_of(name) != "indexer"}

"""Trains all attention matrices but the indexer's; freezes everything else."""

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy, Trainable
from dsa_sandbox.strategies.masks import MaskSettings


@strategies.register("attention-only")
class AttentionOnly(Strategy):
    """Control: freezes norms, feed-forward layers and embedding; trains both flows."""

    Settings = MaskSettings
    role = "mask"

    def trainable(self, model: Transformer) -> Trainable:
        names = [
            name
            for name, parameter in model.named_parameters()
            if "attention" in name.split(".")
            and parameter.dim() > 1
            and group_of(name) != "indexer"
        ]
        return Trainable(dict.fromkeys(names, self.settings.rate))

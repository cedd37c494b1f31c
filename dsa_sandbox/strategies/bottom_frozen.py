"""Freezes the embedding and the lowest layers; trains the layers above.

`Freeze` of Zheng et al. 2025, Spurious Forgetting (arXiv 2501.13453).
"""

from pydantic import Field

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainable
from dsa_sandbox.strategies.masks import MaskSettings


class BottomFrozenSettings(MaskSettings):
    """Learning rate, and the share of frozen layers."""

    share: float = Field(
        1 / 3,
        ge=0,
        le=1,
        description="Share of the layers, from the bottom, to freeze; rounded to whole layers.",
    )


@strategies.register("bottom-frozen")
class BottomFrozen(Strategy):
    """Trains all but the embedding, the lowest layers and the indexer."""

    Settings = BottomFrozenSettings
    role = "mask"

    def trainable(self, model: Transformer) -> Trainable:
        num_frozen = round(self.settings.share * len(model.blocks))
        frozen = ("embedding.", *(f"blocks.{number}." for number in range(num_frozen)))
        names = [n for n in super().trainable(model).lr_scales if not n.startswith(frozen)]
        return Trainable(dict.fromkeys(names, self.settings.rate))

"""Freezes the embedding and the lowest layers; trains the layers above.

`Freeze` of Zheng et al. 2025, Spurious Forgetting (arXiv 2501.13453).
"""

from pydantic import Field

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy
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

    def moves(self, model: Transformer) -> dict[str, float]:
        num_still = round(self.settings.share * len(model.blocks))
        still = ("embedding.", *(f"blocks.{number}." for number in range(num_still)))
        moving = (name for name in super().moves(model) if not name.startswith(still))
        return dict.fromkeys(moving, self.settings.rate)

"""ACFT: freeze the compressed flow, train the selected one. On `dense`, the homologous heads."""

from typing import Literal

from pydantic import Field

from dsa_sandbox.core.transformer import Transformer, group_of
from dsa_sandbox.registry import strategies
from dsa_sandbox.settings import Frozen
from dsa_sandbox.strategies.base import Strategy


class AcftSettings(Frozen):
    """What moves, and how fast."""

    rate: float = Field(2.0, gt=0, description="Multiplies the learning rate of what moves.")
    group: Literal["matched", "all"] = Field(
        "matched", description="dense: move b and b1 (the count of a selected flow), or b2 as well."
    )


@strategies.register("acft")
class Acft(Strategy):
    """Move query, key, value and output matrices of the selected flow; all else stays bit-equal."""

    Settings = AcftSettings

    def moves(self, model: Transformer) -> dict[str, float]:
        groups = getattr(model.blocks[0].attention, "focus", {}).get(self.settings.group, ())
        moving = [n for n, _ in model.named_parameters() if group_of(n) in groups]
        if not moving:
            raise ValueError("acft: this architecture has no selected flow (attention.focus)")
        return dict.fromkeys(moving, self.settings.rate)

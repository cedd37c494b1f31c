"""ACFT: freeze the compressed flow, train the selected one. On `dense`, the homologous heads.

Or train the routed experts of a mixture ("specific routings"): their router and all else is frozen.
"""

from typing import Literal

from pydantic import Field

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer, group_of
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


class AcftSettings(Frozen):
    """What moves, and how fast."""

    rate: float = Field(2.0, gt=0, description="Multiplies the learning rate of what moves.")
    group: Literal["matched", "all"] = Field(
        "matched", description="dense: move b and b1 (the count of a selected flow), or b2 as well."
    )
    moves: Literal["flow", "experts", "both"] = Field(
        "flow", description="Move the selected flow, the routed experts (ffn=moe) instead, or both."
    )


@strategies.register("acft")
class Acft(Strategy):
    """Move matrices of the selected flow (q, k, v, o), or experts; all else stays bit-equal."""

    Settings = AcftSettings
    role = "mask"

    def moves(self, model: Transformer) -> dict[str, float]:
        focus = getattr(model.blocks[0].attention, "focus", {})
        flow = focus.get(self.settings.group, ("selected flow (attention.focus)",))
        groups = {"flow": flow, "experts": ("experts",), "both": (*flow, "experts")}
        wanted = set(groups[self.settings.moves])
        moving = [n for n, _ in model.named_parameters() if group_of(n) in wanted]
        for missing in sorted(wanted.difference(map(group_of, moving))):
            raise ValueError(f"acft.moves={self.settings.moves}: this network has no {missing}")
        return dict.fromkeys(moving, self.settings.rate)

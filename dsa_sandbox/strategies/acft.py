"""ACFT: trains only the selected flow (on `dense`, matching heads); freezes all else.

Or train the routed experts of a mixture ("specific routings"): their router and all else is frozen.
"""

from typing import Literal

from pydantic import Field

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy, Trainable


class AcftSettings(Frozen):
    """Trained parameters and their learning rate."""

    rate: float = Field(1.0, gt=0, description="Factor on the learning rate of trained parameters.")
    group: Literal["matched", "all"] = Field(
        "matched", description="dense: train b and b1 (as large as a selected flow), or b2 too."
    )
    moves: Literal["flow", "experts", "both"] = Field(
        "flow", description="Train the selected flow, the routed experts (ffn=moe), or both."
    )


@strategies.register("acft")
class Acft(Strategy):
    """Trains q, k, v and o of the selected flow, or experts; all else stays bit-equal."""

    Settings = AcftSettings
    role = "mask"

    def trainable(self, model: Transformer) -> Trainable:
        focus = getattr(model.blocks[0].attention, "focus", {})
        flow = focus.get(self.settings.group, ("selected flow (attention.focus)",))
        groups = {"flow": flow, "experts": ("experts",), "both": (*flow, "experts")}
        wanted = set(groups[self.settings.moves])
        names = [name for name, _ in model.named_parameters() if group_of(name) in wanted]
        for missing in sorted(wanted.difference(map(group_of, names))):
            raise ValueError(f"acft.moves={self.settings.moves}: this network has no {missing}")
        return Trainable(dict.fromkeys(names, self.settings.rate))

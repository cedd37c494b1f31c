"""RoPE for all outputs of a layer's projections at once.

Decoding one token at a time costs as much time as it launches operations, whatever their size. So
the outputs of all projections are concatenated and rotated together: each feature becomes
y * cos + partner * sin, with -sin for the first feature of a pair. A feature without rotation has
angle 0.

T tokens, S positions, F features of all projections, C frequencies of all RoPE tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosines and signed sines of every feature, [T, F] each


class Projection(NamedTuple):
    """The weight of a linear layer, and which features of its output RoPE rotates.

    The output consists of heads of `width` features. In each head the features from `first` on are
    rotated in half-split pairs; pair i has the frequency `columns[i]` of the concatenated tables.
    """

    weight: Tensor
    width: int
    columns: Sequence[int] = ()
    first: int = 0


class FusedRope:
    """Rotates the concatenated outputs of several projections."""

    def __init__(self, projections: Sequence[Projection], tables: Sequence[Tensor]) -> None:
        """`tables`: RoPE tables [2, S, H], which are concatenated along their frequencies."""
        self.cos_SC, self.sin_SC = torch.cat([*tables], dim=-1)
        self.num_features = [len(projection.weight) for projection in projections]
        partner: list[int] = []  # of each feature: the other feature of its pair, or itself
        column: list[int] = []  # of each feature: its frequency
        sign: list[int] = []  # of each feature: -1 first of a pair, 1 second, 0 not rotated
        for projection in projections:
            half = len(projection.columns)
            num_before = projection.first
            num_after = projection.width - num_before - 2 * half
            for _ in range(len(projection.weight) // projection.width):  # heads
                first = len(partner) + num_before
                second = first + half
                end = second + half
                partner += range(len(partner), first)
                partner += range(second, end)
                partner += range(first, second)
                partner += range(end, end + num_after)
                column += [0] * num_before + [*projection.columns] * 2 + [0] * num_after
                sign += [0] * num_before + [-1] * half + [1] * half + [0] * num_after
        device = self.cos_SC.device
        self.partner_F = torch.tensor(partner, device=device)
        self.column_F = torch.tensor(column, device=device)
        self.sign_F = torch.tensor(sign, device=device)

    def angles(self, start: int, end: int) -> Angles:
        """Cosines and signed sines [T, F] at the positions from `start` to `end`, exclusive."""
        cos_TF = self.cos_SC[start:end].index_select(1, self.column_F)
        sin_TF = self.sin_SC[start:end].index_select(1, self.column_F)
        return cos_TF.masked_fill_(self.sign_F == 0, 1.0), sin_TF.mul_(self.sign_F)

    def rotate(self, y_BTF: Tensor, angles: Angles) -> tuple[Tensor, ...]:
        """The rotated outputs, one for each projection."""
        cos_TF, sin_TF = angles
        partner_BTF = y_BTF.index_select(-1, self.partner_F)
        rotated_BTF = torch.addcmul(y_BTF * cos_TF, partner_BTF, sin_TF)
        return rotated_BTF.split(self.num_features, dim=-1)

"""The rotation of all that a layer makes of the stream, by a few operations for all of it.

Every feature turns with a partner, y cos + partner sin, with minus for the first of the two; those
that do not turn have angle 0. A token at a time, it is the number of operations that costs.

T tokens, S positions, F features, C columns: frequencies of rotation tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsa_sandbox.core.rope import Table

Angles = tuple[Tensor, Tensor]


class Part(NamedTuple):
    """A matrix, whose output is turned in heads of one width.

    Of a head, pairs of features from `first` on are turned, half-split, by the frequencies in
    `columns` of the tables.
    """

    weight: Tensor
    width: int
    columns: Sequence[int] = ()
    first: int = 0


class Turning:
    """How the outputs of several matrices, side by side, turn at each position."""

    def __init__(self, parts: Sequence[Part], tables: Sequence[Table]) -> None:
        """`tables` are side by side, too, and have a row for each position."""
        cos, sin = zip(*tables)
        self.cos_SC, self.sin_SC = torch.cat(cos, dim=1), torch.cat(sin, dim=1)
        self.num_features = [len(part.weight) for part in parts]
        partner: list[int] = []
        column: list[int] = []
        sign: list[int] = []
        for part in parts:
            half = len(part.columns)
            after = part.width - part.first - 2 * half
            for begin in range(len(partner), len(partner) + len(part.weight), part.width):
                first, second = begin + part.first, begin + part.first + half
                partner += [*range(begin, first), *range(second, second + half)]
                partner += [*range(first, second), *range(second + half, begin + part.width)]
                column += [0] * part.first + [*part.columns] * 2 + [0] * after
                sign += [0] * part.first + [-1] * half + [1] * half + [0] * after
        self.partner_F, self.column_F, self.sign_F = (
            torch.tensor(numbers, device=self.cos_SC.device) for numbers in (partner, column, sign)
        )

    def angles(self, start: int, end: int) -> Angles:
        """Cosines and signed sines [T, F] at the positions from `start` to `end`."""
        cos_TF = self.cos_SC[start:end].index_select(1, self.column_F)
        sin_TF = self.sin_SC[start:end].index_select(1, self.column_F)
        return cos_TF.masked_fill_(self.sign_F == 0, 1.0), sin_TF.mul_(self.sign_F)

    def turned(self, y_BTF: Tensor, angles: Angles) -> tuple[Tensor, ...]:
        """The outputs, turned, one by one."""
        cos_TF, sin_TF = angles
        partner_BTF = y_BTF.index_select(-1, self.partner_F)
        turned_BTF = torch.addcmul(y_BTF * cos_TF, partner_BTF, sin_TF)
        return turned_BTF.split(self.num_features, dim=-1)

"""Rotary position embedding on half-split pairs: i and i + width / 2 turn together.

T tokens, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Table(NamedTuple):
    """Cosines and sines of rotary position embedding, both [T, width / 2]."""

    cos_TH: Tensor
    sin_TH: Tensor


Rope = Table | None  # None: no rotation


def rope_table(length: int, width: int, base: float = 10_000.0) -> Table:
    """Rotation of each half-split pair at each position (RoFormer, arXiv 2104.09864, eq. 15)."""
    frequency_H = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle_TH = torch.arange(length, dtype=torch.float64)[:, None] * frequency_H
    return Table(angle_TH.cos().float(), angle_TH.sin().float())


def rotate(x: Tensor, table: Rope) -> Tensor:
    """`x` [..., T, width] turned by its position; `None` leaves it as it is."""
    if table is None:
        return x
    cos, sin = (part[: x.shape[-2]].to(x.dtype) for part in table)
    first, second = x.contiguous().chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1)
    return torch.cat([turned, torch.addcmul(first * sin, second, cos)], dim=-1)


def rotate_first(x: Tensor, table: Table) -> Tensor:
    """Partial RoPE: as much of the last axis as the table is wide is rotated, the rest passes."""
    num_rotary = 2 * table.cos_TH.shape[-1]
    turned, kept = x.split([num_rotary, x.shape[-1] - num_rotary], dim=-1)
    return torch.cat([rotate(turned, table), kept], dim=-1)


def half(table: Rope) -> Rope:
    """The table of half the width: every second frequency."""
    return None if table is None else Table(table.cos_TH[:, ::2], table.sin_TH[:, ::2])

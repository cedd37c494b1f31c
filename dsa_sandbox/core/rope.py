"""Rotary position embedding (RoPE, arXiv 2104.09864) in the half-split layout.

Features i and i + width / 2 of a head form a pair; position t rotates each pair by t times the
frequency of the pair. A table `rope_2TH` holds the cosines and the sines of these angles.

T tokens, H pairs of a head.
"""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 if it is that already; sums and exponentials need the precision."""
    return x if x.dtype == torch.float64 else x.float()


def rope_table(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Cosines and sines [2, T, width / 2] for heads of `width`, fp32 (RoFormer, eq. 15)."""
    # In fp64, since the error of an angle grows with the position; on the CPU whatever the default
    # device is, since a range on "meta" makes torch import seconds of code.
    frequency_H = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    angle_TH = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequency_H
    return torch.stack([angle_TH.cos(), angle_TH.sin()]).float()


def rotate(x: Tensor, rope_2TH: Tensor) -> Tensor:
    """`x` [..., T, width] with each pair rotated by its position."""
    cos_TH, sin_TH = rope_2TH[:, : x.shape[-2]].to(x.dtype)
    first, second = x.contiguous().chunk(2, dim=-1)
    rotated_first = torch.addcmul(first * cos_TH, second, sin_TH, value=-1)
    rotated_second = torch.addcmul(first * sin_TH, second, cos_TH)
    return torch.cat([rotated_first, rotated_second], dim=-1)


def rotate_partially(x: Tensor, rope_2TH: Tensor) -> Tensor:
    """`x` with its first features rotated, as many as the table covers (partial RoPE)."""
    num_rotary = 2 * rope_2TH.shape[-1]
    rotary, unrotated = x.split([num_rotary, x.shape[-1] - num_rotary], dim=-1)
    return torch.cat([rotate(rotary, rope_2TH), unrotated], dim=-1)

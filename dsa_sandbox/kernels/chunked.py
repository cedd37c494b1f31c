"""What a chunk of queries looks at, and the three products that sparse attention is made of.

A chunk is some queries of one sequence. With weights p[r,n,j] for its R queries, N heads and K
kept keys each, at the ids s = ids[r,j]:

* `sampled`: x[r,n,j] = a[r,n] . b[s], scores and their like, at the ids only;
* `mixed`: y[r,n] = sum_j p[r,n,j] b[s], a mean of values, or the gradient of queries;
* `added`: b[s] += sum_rn p[r,n,j] a[r,n], the gradient of keys or values.

Each has two ways. The gathered way copies the K rows of every query: R * N * K work, in products of
N by H by K. The dense way multiplies with all S keys that the chunk could see and picks the ids out
of that block, or lays weights into a block of zeros: R * N * S work, in products of R * N by H by
S, which a processor does at full speed. What S / K is decides between them; neither ever holds more
than one chunk.

R queries of the chunk, N heads, S keys up to the chunk's last query, K kept keys, H any width.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# The numbers that a block [R, N, S] or copies [R, K, H] may have: on a CPU 4 MB, which stay in its
# last cache (at 16 MB products take twice as long).
BLOCK = {"cpu": 2**20, "cuda": 2**26}
MOST_QUERIES = {"cpu": 128, "cuda": 4096}  # the more, the more keys that most of them cannot see
# S / K from which the gathered way is the faster one, of `sampled` and `mixed`, and of `added`,
# whose many small additions are slow; on one thread of an EPYC, 4 heads of 32
GATHER_FROM, SCATTER_FROM = 4, 16


def wide(x: Tensor) -> Tensor:
    """At least fp32: what sums and exponentials are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def plain(device: torch.device) -> torch.autocast:
    """No automatic mixed precision within."""
    return torch.autocast(device.type, enabled=False)


def block(num_rows: int, width: int, like: Tensor) -> Tensor:
    """[num_rows, width] and some, to be overwritten; rows begin at a whole number of 64 bytes,
    and so a product is written 1.5 times as fast."""
    return like.new_empty(num_rows, 16 * (width // 16 + 1))


def product(a_MH: Tensor, b_SH: Tensor) -> Tensor:
    """a @ b^T, [M, S]."""
    out_MS = block(len(a_MH), len(b_SH), a_MH)[:, : len(b_SH)]
    return torch.mm(a_MH, b_SH.t(), out=out_MS)


class Chunk(NamedTuple):
    """Queries `rows` of a sequence, none of which sees key `end` or a later one."""

    rows: slice
    end: int


def chunks(
    positions: Sequence[int], num_heads: int, copied: int, device: torch.device
) -> Iterator[Chunk]:
    """The queries at `positions` of a sequence, in chunks that fit a block.

    `copied`: K * H, the numbers that are copied for one query.
    """
    block, most = (sizes.get(device.type, sizes["cuda"]) for sizes in (BLOCK, MOST_QUERIES))
    start = 0
    while start < len(positions):
        end = max(positions[start : start + most]) + 1
        fits = max(8, block // max(num_heads * end, copied))
        several = positions[start : start + min(most, fits)]
        yield Chunk(slice(start, start + len(several)), max(several) + 1)
        start += len(several)


class Total:
    """A sum [S, H] of what chunks add: of dense products by columns, which is faster."""

    def __init__(self, like_SH: Tensor) -> None:
        self.rows_SH, self.columns_HS = torch.zeros_like(like_SH), torch.zeros_like(like_SH.t())

    @property
    def value_SH(self) -> Tensor:
        return self.rows_SH + self.columns_HS.t()


class Keys:
    """Rows [S, H] that the queries of a chunk look at, or the copies of them for each query."""

    def __init__(self, support: "Support", b_SH: Tensor) -> None:
        self.support, self.rows_SH = support, b_SH[: support.end]

    @cached_property
    def copies_RKH(self) -> Tensor:
        copies_MH = self.rows_SH.index_select(0, self.support.ids_M)
        return copies_MH.unflatten(0, (self.support.num_queries, -1))


class Support:
    """The ids [R, K] of a chunk, and the products with them."""

    def __init__(self, ids_RK: Tensor, end: int) -> None:
        self.end, (self.num_queries, num_kept) = end, ids_RK.shape
        self.gathers, self.scatters = (n * num_kept <= end for n in (GATHER_FROM, SCATTER_FROM))
        ids_RK = ids_RK.long()
        none_RK = ids_RK < 0 if (ids_RK[:, -1] < 0).any() else None
        # -1 is copied from row 0, with a weight of 0; in a block it has a spare column behind `end`
        self.ids_M = (ids_RK if none_RK is None else ids_RK.clamp(min=0)).flatten()
        slots_RK = ids_RK if none_RK is None else ids_RK.masked_fill(none_RK, end)
        self.slots_R1K, self.none_RK = slots_RK.unsqueeze(1), none_RK

    def keys(self, b_SH: Tensor) -> Keys:
        """Rows for `sampled` and `mixed`."""
        return Keys(self, b_SH)

    def sampled(self, a_RNH: Tensor, keys: Keys) -> Tensor:
        """[R, N, K]; anything at an id of -1."""
        if self.gathers:
            return torch.bmm(a_RNH, keys.copies_RKH.transpose(1, 2))
        block_MS = block(a_RNH.shape[0] * a_RNH.shape[1], self.end, a_RNH)
        torch.mm(a_RNH.flatten(0, 1), keys.rows_SH.t(), out=block_MS[:, : self.end])
        block_RNS = block_MS.unflatten(0, a_RNH.shape[:2])
        return block_RNS.gather(-1, self.slots_R1K.expand(-1, a_RNH.shape[1], -1))

    def without(self, x: Tensor, value: float) -> Tensor:
        """`x` [R, N, K] or [R, K] with `value` at every id of -1, in place."""
        if self.none_RK is None:
            return x
        return x.masked_fill_(self.none_RK if x.dim() == 2 else self.none_RK.unsqueeze(1), value)

    def softmax(self, x_RNK: Tensor) -> Tensor:
        """Over the ids that there are; nothing where there are none."""
        return self.without(self.without(x_RNK, torch.finfo(x_RNK.dtype).min).softmax(-1), 0.0)

    def spread(self, weights_RNK: Tensor) -> "Spread":
        """Weights, ready for products."""
        return Spread(self, weights_RNK)


class Spread:
    """Weights [R, N, K] at the ids, laid out among all keys where a product wants them so."""

    def __init__(self, support: Support, weights_RNK: Tensor) -> None:
        self.support, self.weights_RNK = support, weights_RNK

    def become(self, weights_RNK: Tensor) -> "Spread":
        """Other weights at the same ids, in the same memory."""
        self.weights_RNK = weights_RNK
        if "block_MS" in vars(self):
            self.lay(self.block_MS)
        return self

    @cached_property
    def block_MS(self) -> Tensor:
        num_rows = self.weights_RNK.shape[0] * self.weights_RNK.shape[1]
        return self.lay(block(num_rows, self.support.end, self.weights_RNK).zero_())

    def lay(self, block_MS: Tensor) -> Tensor:
        block_RNS = block_MS.view(*self.weights_RNK.shape[:2], -1)
        slots_RNK = self.support.slots_R1K.expand_as(self.weights_RNK)
        block_RNS.scatter_(-1, slots_RNK, self.weights_RNK)
        return block_MS

    def mixed(self, keys: Keys) -> Tensor:
        """[R, N, H]."""
        if self.support.gathers:
            return torch.bmm(self.weights_RNK, keys.copies_RKH)
        y_MH = self.block_MS[:, : self.support.end] @ keys.rows_SH
        return y_MH.unflatten(0, (self.support.num_queries, -1))

    def add(self, total: Total, a_RNH: Tensor) -> None:
        """Add to the rows of `total`."""
        if self.support.scatters:
            change_RKH = torch.bmm(self.weights_RNK.transpose(1, 2), a_RNH)
            total.rows_SH.index_add_(0, self.support.ids_M, change_RKH.flatten(0, 1))
            return
        columns_HS = total.columns_HS[:, : self.support.end]
        columns_HS.addmm_(a_RNH.flatten(0, 1).t(), self.block_MS[:, : self.support.end])

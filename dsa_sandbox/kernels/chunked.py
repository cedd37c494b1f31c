"""Chunks of queries, and the three products of sparse attention with the keys of a chunk.

A chunk is a range of queries of one sequence. For its R queries, N heads and K selected keys per
query, at the ids s = ids[r,j]:

* `sampled`: x[r,n,j] = a[r,n] . b[s], dot products at the ids only, such as logits;
* `mixed`: y[r,n] = sum_j p[r,n,j] b[s], such as a mean of values, or the gradient of queries;
* `added`: b[s] += sum_rn p[r,n,j] a[r,n], such as the gradient of keys or values.

Each product has two implementations. The *gathered* one copies the K rows of every query and
multiplies N by H by K for each query: R * N * K * H multiplications. The *dense* one multiplies
R * N by H by S with all S keys that the chunk may see, and reads the ids out of this block, or
writes weights into a block of zeros: more multiplications, but in large products, which a processor
computes at full speed. The ratio S / K decides between them. Neither needs memory for more than one
chunk.

R queries of a chunk, N heads, S keys up to the last query of the chunk, K selected keys, H any
width, M rows of a product (R * N, or R * K).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Most numbers in a block [R, N, S] or in copied rows [R, K, H]. CPU: 4 MB in fp32, which fit the
# last-level cache (with 16 MB, products take twice as long).
BLOCK = {"cpu": 2**20, "cuda": 2**26}
# Most queries of a chunk: in a long chunk, many keys are later than its first queries, in vain.
MOST_QUERIES = {"cpu": 128, "cuda": 4096}
# The S / K from which the gathered implementation is faster (one thread of an EPYC, 4 heads of 32),
# for `sampled` and `mixed`, and for `added`, which needs many small additions.
GATHER_FROM = 4
SCATTER_FROM = 16


def no_autocast(device: torch.device) -> torch.autocast:
    """A context without automatic mixed precision."""
    return torch.autocast(device.type, enabled=False)


def empty_block(num_rows: int, width: int, like: Tensor) -> Tensor:
    """An uninitialised [num_rows, width + 1 to 16], whose rows are multiples of 64 bytes in fp32.

    Products are written to aligned rows 1.5 times as fast.
    """
    return like.new_empty(num_rows, 16 * (width // 16 + 1))


def product(a_MH: Tensor, b_SH: Tensor) -> Tensor:
    """a @ b^T, [M, S], in aligned rows."""
    out_MS = empty_block(len(a_MH), len(b_SH), a_MH)[:, : len(b_SH)]
    return torch.mm(a_MH, b_SH.t(), out=out_MS)


class Chunk(NamedTuple):
    """A range of queries of a sequence, none of which sees the key `end` or a later one."""

    rows: slice
    end: int


def chunks(
    positions: Sequence[int], num_heads: int, copied: int, device: torch.device
) -> Iterator[Chunk]:
    """The queries at `positions` of a sequence, in chunks that fit into a block.

    `copied`: how many numbers are copied for one query, K * H.
    """
    kind = device.type if device.type in BLOCK else "cuda"
    start = 0
    while start < len(positions):
        # the end is estimated for the longest chunk, and computed again for the actual one
        end = max(positions[start : start + MOST_QUERIES[kind]]) + 1
        fitting = max(8, BLOCK[kind] // max(num_heads * end, copied))
        chunk = positions[start : start + min(MOST_QUERIES[kind], fitting)]
        yield Chunk(slice(start, start + len(chunk)), max(chunk) + 1)
        start += len(chunk)


class Total:
    """A sum [S, H] over chunks; dense products are added transposed, which is faster."""

    def __init__(self, like_SH: Tensor) -> None:
        self.rows_SH = torch.zeros_like(like_SH)
        self.columns_HS = torch.zeros_like(like_SH.t())

    @property
    def value_SH(self) -> Tensor:
        return self.rows_SH + self.columns_HS.t()


class Keys:
    """The rows [S, H] of the keys (or values) that a chunk may see, and their copies per query."""

    def __init__(self, support: "Support", b_SH: Tensor) -> None:
        self.support = support
        self.rows_SH = b_SH[: support.end]

    @cached_property
    def copies_RKH(self) -> Tensor:
        copies_MH = self.rows_SH.index_select(0, self.support.ids_M)
        return copies_MH.unflatten(0, (self.support.num_queries, -1))


class Support:
    """The ids [R, K] of a chunk, and the products at these ids."""

    def __init__(self, ids_RK: Tensor, end: int) -> None:
        self.end = end
        self.num_queries = ids_RK.shape[0]
        num_kept = ids_RK.shape[1]
        self.gathers = GATHER_FROM * num_kept <= end
        self.scatters = SCATTER_FROM * num_kept <= end
        ids_RK = ids_RK.long()
        self.missing_RK = None  # True where an id is -1; None if none is
        copied_RK = ids_RK
        column_RK = ids_RK
        if (ids_RK[:, -1] < 0).any():
            self.missing_RK = ids_RK < 0
            # a missing key copies row 0, with a weight of 0; in a block it has column `end`
            copied_RK = ids_RK.clamp(min=0)
            column_RK = ids_RK.masked_fill(self.missing_RK, end)
        self.ids_M = copied_RK.flatten()
        self.column_R1K = column_RK.unsqueeze(1)

    def keys(self, b_SH: Tensor) -> Keys:
        """The keys or values for `sampled` and `mixed`."""
        return Keys(self, b_SH)

    def sampled(self, a_RNH: Tensor, keys: Keys) -> Tensor:
        """Dot products [R, N, K] at the ids; undefined at an id of -1."""
        if self.gathers:
            return torch.bmm(a_RNH, keys.copies_RKH.transpose(1, 2))
        block_MS = empty_block(a_RNH.shape[0] * a_RNH.shape[1], self.end, a_RNH)
        torch.mm(a_RNH.flatten(0, 1), keys.rows_SH.t(), out=block_MS[:, : self.end])
        block_RNS = block_MS.unflatten(0, a_RNH.shape[:2])
        return block_RNS.gather(-1, self.column_R1K.expand(-1, a_RNH.shape[1], -1))

    def fill_missing(self, x: Tensor, value: float) -> Tensor:
        """`x` [R, N, K] or [R, K] with `value` at every id of -1, in place."""
        if self.missing_RK is None:
            return x
        missing = self.missing_RK if x.dim() == 2 else self.missing_RK.unsqueeze(1)
        return x.masked_fill_(missing, value)

    def softmax(self, x_RNK: Tensor) -> Tensor:
        """The softmax of logits over the ids, 0 at an id of -1; changes `x_RNK`."""
        # not -inf: a query without ids would get NaN
        x_RNK = self.fill_missing(x_RNK, torch.finfo(x_RNK.dtype).min)
        return self.fill_missing(x_RNK.softmax(-1), 0.0)

    def weights(self, p_RNK: Tensor) -> "Weights":
        """Weights at the ids, for `mixed` and `added`."""
        return Weights(self, p_RNK)


class Weights:
    """Weights [R, N, K] at the ids; for dense products they are scattered into a block [M, S]."""

    def __init__(self, support: Support, p_RNK: Tensor) -> None:
        self.support = support
        self.p_RNK = p_RNK

    def replace(self, p_RNK: Tensor) -> "Weights":
        """The same object with other weights; a block is overwritten in place."""
        self.p_RNK = p_RNK
        if "block_MS" in vars(self):  # the cached property has been computed
            self.scatter(self.block_MS)
        return self

    @cached_property
    def block_MS(self) -> Tensor:
        num_rows = self.p_RNK.shape[0] * self.p_RNK.shape[1]
        return self.scatter(empty_block(num_rows, self.support.end, self.p_RNK).zero_())

    def scatter(self, block_MS: Tensor) -> Tensor:
        """The block with the weights written into the columns of their ids."""
        block_RNS = block_MS.view(*self.p_RNK.shape[:2], -1)
        column_RNK = self.support.column_R1K.expand_as(self.p_RNK)
        block_RNS.scatter_(-1, column_RNK, self.p_RNK)
        return block_MS

    def mixed(self, keys: Keys) -> Tensor:
        """Weighted sums of rows, [R, N, H]."""
        if self.support.gathers:
            return torch.bmm(self.p_RNK, keys.copies_RKH)
        y_MH = self.block_MS[:, : self.support.end] @ keys.rows_SH
        return y_MH.unflatten(0, (self.support.num_queries, -1))

    def added(self, total: Total, a_RNH: Tensor) -> None:
        """Add the weighted sums over queries and heads to the rows of `total`."""
        if self.support.scatters:
            change_RKH = torch.bmm(self.p_RNK.transpose(1, 2), a_RNH)
            total.rows_SH.index_add_(0, self.support.ids_M, change_RKH.flatten(0, 1))
            return
        columns_HS = total.columns_HS[:, : self.support.end]
        columns_HS.addmm_(a_RNH.flatten(0, 1).t(), self.block_MS[:, : self.support.end])

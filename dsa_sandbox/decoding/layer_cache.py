"""The cache of one attention layer, by architecture.

All projections of the layer's input are computed by one product and rotated by one operation:
decoding one token at a time costs as much time as it launches operations.

B batch, T new tokens, D width, N heads, H head width, F features, R rank of the query latent.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.core.attention import CompressedFlow, DenseAttention, DsaAttention, split_heads
from dsa_sandbox.core.indexer import Indexer
from dsa_sandbox.decoding.fused_rope import Angles, FusedRope, Projection
from dsa_sandbox.decoding.kv_cache import (
    BlockCache,
    IndexerCache,
    LatentCache,
    RowBuffer,
    SelectedCache,
    attend_past,
    weight_of,
)
from dsa_sandbox.variants.block import BlockFlow
from dsa_sandbox.variants.v32 import V32Attention


class Cache(Protocol):
    """The states of past tokens in one attention layer."""

    rope: FusedRope  # equal in all layers of a network, which therefore share its angles

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        """Store new tokens and compute their output [B, T, D]; `angles` are of their positions."""


def cache_of(layer: nn.Module, rope_2TH: Tensor, capacity: int) -> Cache | None:
    """An empty cache for `capacity` tokens; None for a layer that cannot be cached.

    Exact classes are compared, since a subclass may compute something else.
    """
    if type(layer) is DenseAttention:
        return DenseCache(layer, rope_2TH, capacity)
    if type(layer) is V32Attention and layer.selector is None:
        return V32Cache(layer, rope_2TH, capacity)
    if type(layer) is DsaAttention and layer.selector is None:
        known = type(layer.compressed) in (CompressedFlow, BlockFlow)
        return DsaCache(layer, rope_2TH, capacity) if known else None
    return None


class DenseCache:
    """Keys and values of all heads."""

    def __init__(self, layer: DenseAttention, rope_2TH: Tensor, capacity: int) -> None:
        self.head_width = layer.head_width
        self.keys = RowBuffer(capacity)
        self.values = RowBuffer(capacity)
        q = weight_of(layer.a["q"], layer.b["q"])
        k = weight_of(layer.a["k"], layer.b1["k"], layer.b2["k"])
        v = weight_of(layer.a["v"], layer.b1["v"], layer.b2["v"])
        self.qkv = torch.cat([q, k, v])
        self.o = torch.cat([weight_of(layer.a["o"]), weight_of(layer.b["o"])], dim=1)
        frequencies = range(layer.head_width // 2)
        projections = [
            Projection(q, layer.head_width, frequencies),
            Projection(k, layer.head_width, frequencies),
            Projection(v, layer.head_width),
        ]
        self.rope = FusedRope(projections, [rope_2TH])

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        q_BTF, k_BTF, v_BTF = self.rope.rotate(F.linear(x_BTD, self.qkv), angles)
        k_BNSH = self.keys.append(split_heads(k_BTF, self.head_width))
        v_BNSH = self.values.append(split_heads(v_BTF, self.head_width))
        y_BTF = attend_past(split_heads(q_BTF, self.head_width), k_BNSH, v_BNSH)
        return F.linear(y_BTF, self.o)


class DsaCache:
    """The caches of both flows and of the indexer."""

    def __init__(self, layer: DsaAttention, rope_2TH: Tensor, capacity: int) -> None:
        flow = layer.compressed
        selected = layer.selected
        width = layer.head_width
        self.head_width = width
        self.selected = SelectedCache(selected, capacity)
        self.indexer = IndexerCache(layer, capacity)
        # Columns of the concatenated tables. A compressed head rotates half its features, with
        # every second frequency.
        all_frequencies = range(width // 2)
        half = all_frequencies[::2]
        tables = [rope_2TH]
        rotary_columns = [half]  # one entry for each rotary key of the compressed flow
        gate = []
        self.compressed: LatentCache | BlockCache
        if isinstance(flow, BlockFlow):
            self.compressed = BlockCache(flow, capacity)
            # the keys of windows are rotated by the start of the window, with a table of its own
            tables.append(flow.window_starts(rope_2TH))
            rotary_columns = [range(width // 2, width)[::2]]
            if flow.num_local:
                rotary_columns.append(half)
            gate = [unrotated(flow.gate)]
        else:
            self.compressed = LatentCache(
                flow.mix, flow.norm, flow.k_up, flow.v_up, flow.o, flow.head_width, capacity
            )
        tables.append(layer.indexer.rope_2TH)
        rotary_keys = []
        for columns in rotary_columns:
            rotary_keys.append(Projection(weight_of(flow.k_rope), width // 2, columns))
        projections = [
            Projection(weight_of(flow.q), width, half, first=width // 2),
            unrotated(flow.down),
            *rotary_keys,
            *gate,
            Projection(weight_of(selected.q), width, all_frequencies),
            Projection(weight_of(selected.k), width, all_frequencies),
            unrotated(selected.v),
            *indexer_projections(layer.indexer, tables),
        ]
        self.weight = torch.cat([projection.weight for projection in projections])
        self.rope = FusedRope(projections, tables)

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        y_BTF = self.indexer.norm_keys(F.linear(x_BTD, self.weight))
        parts = self.rope.rotate(y_BTF, angles)
        compressed_q_BTF, *compressed_states = parts[:-6]
        q_BTF, k_BTH, v_BTH = parts[-6:-3]
        ids_BTK = self.indexer.select(*parts[-3:])
        q_BNTH = split_heads(q_BTF, self.head_width)
        y_BTD = self.selected.attend(q_BNTH, k_BTH, v_BTH, ids_BTK)
        q_BNTH = split_heads(compressed_q_BTF, self.head_width)
        return self.compressed.attend(q_BNTH, *compressed_states) + y_BTD


class V32Cache:
    """The latents and the indexer's keys."""

    def __init__(self, layer: V32Attention, rope_2TH: Tensor, capacity: int) -> None:
        down = layer.compressed
        up = layer.selected
        width = layer.head_width
        rotary_width = layer.rotary_width
        self.q_norm = down["q_norm"]
        self.q_width = width + rotary_width
        self.indexer = IndexerCache(layer, capacity)
        self.latent = LatentCache(
            layer.mix, down["kv_norm"], up["k"], up["v"], up["o"], width, capacity
        )
        tables = [rope_2TH, layer.indexer.rope_2TH]
        half = range(width // 2)[::2]  # every second frequency, as the rotary part has half a head
        index_q, index_w, index_k = indexer_projections(layer.indexer, tables)
        q_weight = half_split(weight_of(up["q"]), self.q_width, first=width)
        q = Projection(q_weight, self.q_width, half, first=width)
        k_rope_weight = half_split(weight_of(down["k_rope"]), rotary_width, first=0)
        k_rope = Projection(k_rope_weight, rotary_width, half)
        latent = unrotated(down["kv"])
        # two products: the input is projected down, then the query latent is projected up
        query_down = weight_of(down["q"])
        self.query_rank = len(query_down)
        others = [latent, k_rope, index_w, index_k]
        self.down = torch.cat([query_down, *[projection.weight for projection in others]])
        self.up = torch.cat([q.weight, index_q.weight])
        self.rope = FusedRope([q, index_q, *others], tables)

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        y_BTF = self.indexer.norm_keys(F.linear(x_BTD, self.down))
        query_BTR, others_BTF = y_BTF.tensor_split([self.query_rank], dim=-1)
        queries_BTF = F.linear(self.q_norm(query_BTR), self.up)
        parts = self.rope.rotate(torch.cat([queries_BTF, others_BTF], dim=-1), angles)
        q_BTF, index_q_BTF, latent_BTR, k_rope_BTH, index_w_BTI, index_k_BTH = parts
        ids_BTK = self.indexer.select(index_q_BTF, index_w_BTI, index_k_BTH)
        q_BNTF = split_heads(q_BTF, self.q_width)
        return self.latent.attend(q_BNTF, latent_BTR, k_rope_BTH, ids_BTK)


def unrotated(layer: nn.Module) -> Projection:
    """The projection of a layer whose output is not rotated."""
    weight = weight_of(layer)
    return Projection(weight, len(weight))


def indexer_projections(
    indexer: Indexer, tables: list[Tensor]
) -> tuple[Projection, Projection, Projection]:
    """Queries, head weights and keys of the indexer, whose table must be the last of `tables`."""
    num_columns = sum(table.shape[-1] for table in tables)
    columns = range(num_columns)[-indexer.rope_2TH.shape[-1] :]
    q = Projection(weight_of(indexer.q), indexer.head_width, columns)
    k = Projection(weight_of(indexer.k), indexer.head_width, columns)
    return q, unrotated(indexer.w), k


def half_split(weight_FD: Tensor, width: int, first: int) -> Tensor:
    """A weight whose heads have interleaved pairs from feature `first` on, in half-split order."""
    heads_NHD = weight_FD.unflatten(0, (-1, width))
    content, pairs = heads_NHD.tensor_split([first], dim=1)
    return torch.cat([content, pairs[:, 0::2], pairs[:, 1::2]], dim=1).flatten(0, 1)

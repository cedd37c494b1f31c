"""What decoding keeps in each layer, by architecture.

All that a layer reads of the stream is made by one product and turned by one operation: a token at
a time, it is the number of operations that costs.

B batch, T new tokens, D width, N heads, H head width, C columns of the rotation tables, F features.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.core.attention import CompressedFlow, DenseAttention, DsaAttention, heads
from dsa_sandbox.core.indexer import Indexer
from dsa_sandbox.core.rope import Table
from dsa_sandbox.decoding.fused_rope import Angles, Part, Turning
from dsa_sandbox.decoding.kv_cache import (
    BlockRows,
    IndexerRows,
    LatentRows,
    Rows,
    SelectedRows,
    attend_past,
    weight_of,
)
from dsa_sandbox.variants.block import BlockFlow
from dsa_sandbox.variants.v32 import V32Attention


class Cache(Protocol):
    """What one attention layer keeps."""

    turning: Turning  # alike in all layers of a network, so that its angles serve them all

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        """Output [B, T, D] of new tokens, which are kept, at the positions of `angles`."""


def cache_of(layer: nn.Module, table: Table, capacity: int) -> Cache | None:
    """An empty cache for so many tokens; `None` of a layer that chooses its keys in its own way.

    Classes are compared, not asked for their bases: a subclass may compute something else.
    """
    if type(layer) is DenseAttention:
        return DenseCache(layer, table, capacity)
    if type(layer) not in (DsaAttention, V32Attention) or "scores" in vars(layer):
        return None
    if isinstance(layer, V32Attention):
        return V32Cache(layer, table, capacity)
    assert isinstance(layer, DsaAttention)
    if type(layer.compressed) in (CompressedFlow, BlockFlow):
        return DsaCache(layer, table, capacity)
    return None


class DenseCache:
    """Keys and values of all heads."""

    def __init__(self, layer: DenseAttention, table: Table, capacity: int) -> None:
        self.head_width, self.keys, self.values = layer.head_width, Rows(capacity), Rows(capacity)
        queries, others = (layer.a, layer.b), (layer.a, layer.b1, layer.b2)
        q, k, v = (
            weight_of(*(group[name] for group in groups))
            for name, groups in (("q", queries), ("k", others), ("v", others))
        )
        self.qkv = torch.cat([q, k, v])
        self.o = torch.cat([weight_of(group["o"]) for group in queries], dim=1)
        pairs = range(layer.head_width // 2)
        parts = [Part(weight, layer.head_width, pairs) for weight in (q, k)]
        self.turning = Turning([*parts, Part(v, layer.head_width)], [table])

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        parts = self.turning.turned(F.linear(x_BTD, self.qkv), angles)
        q_BNTH, k_BNTH, v_BNTH = (heads(part_BTF, self.head_width) for part_BTF in parts)
        y_BTF = attend_past(q_BNTH, self.keys.grown(k_BNTH), self.values.grown(v_BNTH))
        return F.linear(y_BTF, self.o)


class DsaCache:
    """What both flows and the indexer keep."""

    def __init__(self, layer: DsaAttention, table: Table, capacity: int) -> None:
        flow, selected, width = layer.compressed, layer.selected, layer.head_width
        pairs, tables = range(width // 2), [table]
        half, gate = pairs[::2], []
        rotary_keys = [half]  # the frequencies of each
        self.compressed: LatentRows | BlockRows
        if isinstance(flow, BlockFlow):
            self.compressed = BlockRows(flow, capacity)
            tables.append(flow.opening(table))
            rotary_keys = [range(width // 2, width)[::2], *([half] if flow.num_local else [])]
            gate = [whole(flow.gate)]
        else:
            self.compressed = LatentRows(flow, capacity)
        tables.append(Table(layer.indexer.cos_TH, layer.indexer.sin_TH))
        parts = [
            Part(weight_of(flow.q), width, half, first=width // 2),
            whole(flow.down),
            *(Part(weight_of(flow.k_rope), width // 2, columns) for columns in rotary_keys),
            *gate,
            Part(weight_of(selected.q), width, pairs),
            Part(weight_of(selected.k), width, pairs),
            whole(selected.v),
            *indexer_parts(layer.indexer, tables),
        ]
        self.weight = torch.cat([part.weight for part in parts])
        self.turning, self.head_width = Turning(parts, tables), width
        self.selected, self.indexer = SelectedRows(selected, capacity), IndexerRows(layer, capacity)

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        y_BTF = self.indexer.normed(F.linear(x_BTD, self.weight))
        parts = self.turning.turned(y_BTF, angles)
        (far_BTF, *far), (q_BTF, k_BTH, v_BTH), of_indexer = parts[:-6], parts[-6:-3], parts[-3:]
        ids_BTK = self.indexer.chosen(*of_indexer)
        y_BTD = self.selected.look(heads(q_BTF, self.head_width), k_BTH, v_BTH, ids_BTK)
        return self.compressed.look(heads(far_BTF, self.head_width), *far) + y_BTD


class V32Cache:
    """Latents, and indexer keys."""

    def __init__(self, layer: V32Attention, table: Table, capacity: int) -> None:
        below, above, width = layer.compressed, layer.selected, layer.head_width
        num_rotary = width // 2
        self.q_norm, self.q_width = below["q_norm"], width + num_rotary
        tables = [table, Table(layer.indexer.cos_TH, layer.indexer.sin_TH)]
        half = range(width // 2)[::2]
        queries, *others = indexer_parts(layer.indexer, tables)
        q = Part(halved(weight_of(above["q"]), self.q_width, width), self.q_width, half, width)
        k_rope = Part(halved(weight_of(below["k_rope"]), num_rotary, 0), num_rotary, half)
        of_stream = [whole(below["kv"]), k_rope, *others]
        query_down = weight_of(below["q"])
        self.query_rank = len(query_down)
        self.down = torch.cat([query_down, *(part.weight for part in of_stream)])
        self.up = torch.cat([q.weight, queries.weight])
        self.turning = Turning([q, queries, *of_stream], tables)
        self.latent, self.indexer = LatentRows(layer, capacity), IndexerRows(layer, capacity)

    def step(self, x_BTD: Tensor, angles: Angles) -> Tensor:
        y_BTF = self.indexer.normed(F.linear(x_BTD, self.down))
        query_BTR, others_BTF = y_BTF.tensor_split([self.query_rank], dim=-1)
        queries_BTF = F.linear(self.q_norm(query_BTR), self.up)
        parts = self.turning.turned(torch.cat([queries_BTF, others_BTF], dim=-1), angles)
        q_BTF, indexer_q_BTF, latent_BTR, k_rope_BTH, w_BTI, k_BTH = parts
        ids_BTK = self.indexer.chosen(indexer_q_BTF, w_BTI, k_BTH)
        return self.latent.look(heads(q_BTF, self.q_width), latent_BTR, k_rope_BTH, ids_BTK)


def whole(layer: nn.Module) -> Part:
    """A matrix whose output does not turn."""
    weight = weight_of(layer)
    return Part(weight, len(weight))


def indexer_parts(indexer: Indexer, tables: list[Table]) -> tuple[Part, Part, Part]:
    """Queries, weights of the heads, and keys; their table is the last."""
    num_columns = indexer.cos_TH.shape[1]
    columns = range(sum(table.cos_TH.shape[1] for table in tables))[-num_columns:]
    q, k = (Part(weight_of(layer), indexer.head_width, columns) for layer in (indexer.q, indexer.k))
    return q, whole(indexer.w), k


def halved(weight_FD: Tensor, width: int, first: int) -> Tensor:
    """A matrix whose heads turn pairs (0, 1), (2, 3), .. from `first` on, as one of half-split."""
    still, pairs = weight_FD.unflatten(0, (-1, width)).tensor_split([first], dim=1)
    return torch.cat([still, pairs[:, 0::2], pairs[:, 1::2]], dim=1).flatten(0, 1)

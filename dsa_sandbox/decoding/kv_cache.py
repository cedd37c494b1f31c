"""The states of past tokens that each kind of flow stores, and attention of new tokens over them.

A few queries at a time are computed in the space of the latents (the absorbed form of arXiv
2405.04434, section 2.1.2) and read the selected rows only; many queries at a time are computed as
in training.

B batch, T new tokens, S all tokens so far, D width, N heads, I indexer heads, H head width, R
latent rank, K selected keys, W windows, F features of a stored row, G groups of M queries that
attend to the same rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.core.attention import (
    SelectedFlow,
    TopKAttention,
    attend,
    merge_heads,
    split_heads,
)
from dsa_sandbox.core.indexer import select, selected_mask
from dsa_sandbox.variants.block import BlockFlow


def weight_of(*layers: nn.Module) -> Tensor:
    """A copy of the weights of several layers, concatenated along their outputs, no gradient."""
    return torch.cat([layer.get_parameter("weight").detach() for layer in layers])


class RowBuffer:
    """Rows of tokens [B, .., S, F] in memory that is allocated once, for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.storage = torch.empty(0)  # allocated by the first `append`, which tells the shape

    def append(self, *parts: Tensor) -> Tensor:
        """Store rows of new tokens, the concatenation of their parts; a view of all rows so far."""
        new = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        if self.storage.numel() == 0:
            self.storage = new.new_empty(*new.shape[:-2], self.capacity, new.shape[-1])
        start = self.length
        self.length = start + new.shape[-2]
        self.storage[..., start : self.length, :] = new
        return self.storage[..., : self.length, :]

    def gather(self, ids_BTK: Tensor) -> Tensor:
        """The rows [B, T, K, F] at the ids of each new token."""
        batch = len(ids_BTK)
        if batch > 1:  # ids count within a sequence, the flattened storage over all of them
            first_B = torch.arange(batch, device=ids_BTK.device) * self.capacity
            ids_BTK = ids_BTK + first_B[:, None, None]
        return F.embedding(ids_BTK, self.storage.flatten(0, 1))


def past_mask(num_new: int, length: int, device: torch.device) -> Tensor:
    """[1, T, S] bool, True where a token is not later than a new token."""
    position_S = torch.arange(length, device=device)
    return (position_S <= position_S[length - num_new :, None]).unsqueeze(0)


def mask_of(ids_BTK: Tensor | None, num_new: int, rows: Tensor) -> Tensor | None:
    """The mask [B, T, S] of the ids, or of all past tokens if ids are None.

    None for causal attention of all tokens (T = S), which needs no mask.
    """
    length = rows.shape[-2]
    if ids_BTK is not None:
        return selected_mask(ids_BTK, length)
    if num_new == length:
        return None
    return past_mask(num_new, length, rows.device)


def attend_past(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor) -> Tensor:
    """Attention output [B, T, N * H] of the last T tokens over all past tokens."""
    num_new = q_BNTH.shape[2]
    if num_new == 1:  # the last token sees every token, without a mask
        return merge_heads(F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH))
    return attend(q_BNTH, k_BNSH, v_BNSH, mask_of(None, num_new, k_BNSH))


def attend_rows(
    q_BNTF: Tensor,
    buffer: RowBuffer,
    ids_BTK: Tensor | None,
    keys: slice,
    values: slice,
    scale: float,
) -> Tensor:
    """Attention output [B, T, N, F] of heads that share the rows of `buffer`.

    `keys` and `values` are the features of a row that serve as key and as value. Each new token
    attends to the rows at its ids, none of which may be -1, or to all past rows if ids are None.
    """
    q_BTNF = q_BNTF.transpose(1, 2)
    num_new = q_BTNF.shape[1]
    # Queries that attend to the same rows form one product: the heads of a token (G = T, M = N),
    # or of all tokens if these read all rows (G = 1, M = T * N).
    q_BGMF = q_BTNF
    mask_1GMS = None
    if ids_BTK is not None:
        rows_BGSF = buffer.gather(ids_BTK)
    else:
        rows_BGSF = buffer.storage[:, : buffer.length].unsqueeze(1)
        if num_new > 1:
            q_BGMF = q_BTNF.flatten(1, 2).unsqueeze(1)
            mask_1TS = past_mask(num_new, buffer.length, q_BNTF.device)
            mask_1GMS = mask_1TS.repeat_interleave(q_BTNF.shape[2], dim=1).unsqueeze(1)
    k_BGSF = rows_BGSF[..., keys]
    v_BGSF = rows_BGSF[..., values]
    y_BGMF = F.scaled_dot_product_attention(q_BGMF, k_BGSF, v_BGSF, mask_1GMS, scale=scale)
    return y_BGMF.reshape(*q_BTNF.shape[:3], -1)


def reads_fewer(ids_BTK: Tensor, length: int) -> bool:
    """Whether gathering rows by id reads at most as many rows as there are tokens, T * K <= S.

    In that case every new token has K past tokens and no id is -1, since the first of them is
    preceded by S - T >= T * (K - 1) tokens.
    """
    return ids_BTK.shape[1] * ids_BTK.shape[2] <= length


class LatentCache:
    """Latents and rotary keys, which serve all heads of multi-head latent attention.

    A few queries are multiplied by the key matrices, q . (W c) = (W^T q) . c, and their values are
    made from mean latents. Many queries expand each latent to keys and values once.
    """

    def __init__(
        self,
        mix: Callable[..., Tensor],
        norm: nn.Module,
        k_up: nn.Module,
        v_up: nn.Module,
        out: nn.Module,
        head_width: int,
        capacity: int,
    ) -> None:
        """`mix` computes the output [B, T, D] from queries, latents, rotary keys and a mask."""
        self.mix = mix
        self.norm = norm
        self.out = out
        num_heads = len(weight_of(v_up)) // head_width
        self.k_up_NHR = weight_of(k_up).unflatten(0, (num_heads, -1))
        self.v_up_NRH = weight_of(v_up).unflatten(0, (num_heads, -1)).mT
        self.buffer = RowBuffer(capacity)

    def attend(
        self, q_BNTF: Tensor, latent_BTR: Tensor, k_rope_BTH: Tensor, ids_BTK: Tensor | None = None
    ) -> Tensor:
        """Store new tokens and compute their output [B, T, D] over the keys at `ids_BTK`.

        None: over all past keys.
        """
        rows_BSF = self.buffer.append(self.norm(latent_BTR), k_rope_BTH)
        rank = latent_BTR.shape[-1]
        num_new = q_BNTF.shape[2]
        if not self.is_cheaper_absorbed(num_new, ids_BTK):
            mask_BTS = mask_of(ids_BTK, num_new, rows_BSF)
            return self.mix(q_BNTF, rows_BSF[..., :rank], rows_BSF[..., rank:], mask_BTS)
        content, position = q_BNTF.tensor_split([-k_rope_BTH.shape[-1]], dim=-1)
        q_BNTF = torch.cat([content @ self.k_up_NHR, position], dim=-1)
        # The whole row serves as key and as value, as a fused kernel wants them equally wide; the
        # part of the output that comes from rotary keys is dropped.
        scale = (content.shape[-1] + position.shape[-1]) ** -0.5
        whole_row = slice(None)
        mean_BTNF = attend_rows(q_BNTF, self.buffer, ids_BTK, whole_row, whole_row, scale)
        v_BNTH = mean_BTNF[..., :rank].transpose(1, 2) @ self.v_up_NRH
        return self.out(merge_heads(v_BNTH))

    def is_cheaper_absorbed(self, num_new: int, ids_BTK: Tensor | None) -> bool:
        """Whether so many queries need fewer multiplications in the space of the latents."""
        if ids_BTK is not None:
            return reads_fewer(ids_BTK, self.buffer.length)
        # per head and stored token: 2 R for each query absorbed; R E to expand the latent once and
        # then E for each query, where E is the width of an expanded key and value
        rank = self.v_up_NRH.shape[1]
        expanded = self.v_up_NRH.shape[2] + self.k_up_NHR.shape[1]
        return num_new * (2 * rank - expanded) < rank * expanded


class SelectedCache:
    """The key and the value of each token, of which a new token reads the selected ones."""

    def __init__(self, flow: SelectedFlow, capacity: int) -> None:
        self.flow = flow
        self.buffer = RowBuffer(capacity)

    def attend(
        self, q_BNTH: Tensor, k_BTH: Tensor, v_BTH: Tensor, ids_BTK: Tensor | None
    ) -> Tensor:
        """Store new tokens and compute their output [B, T, D], as `LatentCache.attend`."""
        rows_BSF = self.buffer.append(k_BTH, v_BTH)
        width = k_BTH.shape[-1]
        num_new = q_BNTH.shape[2]
        if ids_BTK is None:
            by_row = num_new == 1
        else:
            by_row = reads_fewer(ids_BTK, self.buffer.length)
        if by_row:
            keys = slice(width)
            values = slice(width, None)
            y_BTNH = attend_rows(q_BNTH, self.buffer, ids_BTK, keys, values, width**-0.5)
            return self.flow.o(y_BTNH.flatten(2))
        k_B1SH, v_B1SH = rows_BSF.unsqueeze(1).chunk(2, dim=-1)
        return self.flow.mix(q_BNTH, k_B1SH, v_B1SH, mask_of(ids_BTK, num_new, rows_BSF))


class IndexerCache:
    """The indexer's keys."""

    def __init__(self, layer: TopKAttention, capacity: int) -> None:
        self.layer = layer
        self.buffer = RowBuffer(capacity)

    def norm_keys(self, y_BTF: Tensor) -> Tensor:
        """`y_BTF` with its last features, the indexer's keys, normed in place."""
        k_BTH = y_BTF[..., -self.layer.indexer.head_width :]
        k_BTH.copy_(self.layer.indexer.k_norm(k_BTH))
        return y_BTF

    def select(self, q_BTF: Tensor, w_BTI: Tensor, k_BTH: Tensor) -> Tensor | None:
        """Ids [B, T, K] of the keys that new tokens attend to, -1 for none; None: all past keys.

        Weights of indexer heads may lack their positive scale, which does not change the order.
        """
        layer = self.layer
        k_BSH = self.buffer.append(k_BTH)
        length = k_BSH.shape[1]
        if layer.num_kept >= length:
            return None
        if q_BTF.shape[1] > 1:
            q_BITH = split_heads(q_BTF, layer.indexer.head_width)
            scores_BTS = layer.indexer.score(q_BITH, w_BTI, k_BSH)
            return select(scores_BTS, layer.num_kept, layer.num_sink, layer.num_local)
        # one token: fewer operations than `score` and `select`
        q_BIH = q_BTF.reshape(len(q_BTF), layer.indexer.num_heads, -1)
        scores_B1S = torch.bmm(w_BTI, torch.bmm(q_BIH, k_BSH.mT).relu_())
        scores_B1S[..., : layer.num_sink].fill_(torch.inf)
        scores_B1S[..., length - layer.num_local :].fill_(torch.inf)
        best_B1K, ids_B1K = scores_B1S.topk(layer.num_kept + 1)
        # `topk` may break a tie at the K-th score in another way than `select`
        if bool((best_B1K[..., -2] > best_B1K[..., -1]).all()):
            return ids_B1K[..., :-1]
        return select(scores_B1S, layer.num_kept, layer.num_sink, layer.num_local)


class BlockCache:
    """Pooled windows, and the tokens that are still seen singly or whose window is still open."""

    def __init__(self, flow: BlockFlow, capacity: int) -> None:
        self.flow = flow
        self.length = 0
        self.windows = RowBuffer(capacity // flow.window + 1)
        # rows [B, N, S, F] and gate logits [B, N, S, 1] of the last tokens
        self.tail: tuple[Tensor, Tensor] | None = None

    def attend(self, q_BNTH: Tensor, latent_BTR: Tensor, *others: Tensor) -> Tensor:
        """Store new tokens and compute their output [B, T, D].

        `others` are the rotary keys as `BlockFlow.rows` takes them, and the gate's output.
        """
        flow = self.flow
        size = flow.window
        num_new = q_BNTH.shape[2]
        *rotary_keys, gate_BTN = others
        start = self.length
        end = start + num_new
        rows_BNSF = flow.rows(latent_BTR, *rotary_keys)
        gate_BNS1 = flow.gate_logits(gate_BTN, start)
        if self.tail is not None:
            rows_BNSF = torch.cat([self.tail[0], rows_BNSF], dim=2)
            gate_BNS1 = torch.cat([self.tail[1], gate_BNS1], dim=2)
        # the next tokens need those of the open window, and the last L - 1
        num_stored = max(end % size, min(end, flow.num_local - 1))
        first_stored = rows_BNSF.shape[2] - num_stored
        self.tail = rows_BNSF[:, :, first_stored:], gate_BNS1[:, :, first_stored:]
        self.length = end

        num_open = start % size + num_new  # tokens since the last window that was closed before
        open_rows_BNSF = rows_BNSF[:, :, -num_open:]
        open_gate_BNS1 = gate_BNS1[:, :, -num_open:]
        if num_new > 1:
            pools_BNSF = flow.pooled(open_rows_BNSF, open_gate_BNS1)
            closed_BNWF = self.windows.append(pools_BNSF[:, :, size - 1 :: size])
            own_BNTF = pools_BNSF[:, :, -num_new:]
            return flow.attend_windows(q_BNTH, own_BNTF, closed_BNWF, rows_BNSF, start)
        # one token: its own window, pooled up to it, is one more row behind the closed windows
        values = slice(flow.head_width, 2 * flow.head_width)
        own_BN1F = open_gate_BNS1.softmax(2).mT @ open_rows_BNSF[..., : values.stop]
        k_BNSH, v_BNSH = self.windows.append(own_BN1F).chunk(2, dim=-1)
        if end % size:  # still open: the next token overwrites it
            self.windows.length -= 1
        if flow.num_local:
            local_BNSF = rows_BNSF[:, :, -flow.num_local :]
            k_BNSH = torch.cat([k_BNSH, flow.token_keys(local_BNSF)], dim=2)
            v_BNSH = torch.cat([v_BNSH, local_BNSF[..., values]], dim=2)
        return flow.o(attend_past(q_BNTH, k_BNSH, v_BNSH))

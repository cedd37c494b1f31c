"""What each kind of flow keeps of a token, and how new tokens look at what is kept.

Few queries meet a latent in its own space (the absorbed form of arXiv 2405.04434, section 2.1) and
read selected keys only; many at once are treated as in training.

B batch, T new tokens, S all tokens so far, D width, N heads, I indexer heads, H head width, R rank,
K kept keys, W windows, F what a token is to a flow, G groups and M queries of a group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.core.attention import (
    CompressedFlow,
    DsaAttention,
    SelectedFlow,
    attend,
    heads,
    merged,
)
from dsa_sandbox.core.indexer import kept_mask, select
from dsa_sandbox.variants.block import BlockFlow
from dsa_sandbox.variants.v32 import V32Attention


def weight_of(*layers: nn.Module) -> Tensor:
    """The matrices of several layers, one below the other; a copy that learns no more."""
    return torch.cat([layer.get_parameter("weight").detach() for layer in layers])


class Rows:
    """Rows of tokens, [B, .., S, F], that grow in room that is taken once."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.room = torch.empty(0)

    def grown(self, *new: Tensor) -> Tensor:
        """All rows, a view; those of new tokens, whose parts stand side by side, are the last."""
        rows = torch.cat(new, dim=-1) if len(new) > 1 else new[0]
        if self.room.numel() == 0:
            self.room = rows.new_empty(*rows.shape[:-2], self.capacity, rows.shape[-1])
        start, self.length = self.length, self.length + rows.shape[-2]
        self.room[..., start : self.length, :] = rows
        return self.room[..., : self.length, :]

    def at(self, ids_BTK: Tensor) -> Tensor:
        """The rows that each new token looks at, [B, T, K, F]."""
        if len(ids_BTK) > 1:
            first_B = torch.arange(len(ids_BTK), device=ids_BTK.device) * self.capacity
            ids_BTK = ids_BTK + first_B[:, None, None]
        return F.embedding(ids_BTK, self.room.flatten(0, 1))


def past(num_new: int, length: int, device: torch.device) -> Tensor:
    """[1, T, S] True where new tokens see."""
    position_S = torch.arange(length, device=device)
    return (position_S <= position_S[length - num_new :, None]).unsqueeze(0)


def kept_by(ids_BTK: Tensor | None, num_new: int, rows: Tensor) -> Tensor | None:
    """What new tokens see of the rows, as `Flow.mix` has it; ids `None`: all the past."""
    length = rows.shape[-2]
    if ids_BTK is not None:
        return kept_mask(ids_BTK, length)
    return None if num_new == length else past(num_new, length, rows.device)


def attend_past(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor) -> Tensor:
    """[B, T, N * H] of the last tokens, which see all the past."""
    num_new = q_BNTH.shape[2]
    if num_new == 1:  # no mask
        return merged(F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH))
    return attend(q_BNTH, k_BNSH, v_BNSH, kept_by(None, num_new, k_BNSH))


def attend_rows(
    q_BNTF: Tensor, rows: Rows, ids_BTK: Tensor | None, keys: slice, values: slice, scale: float
) -> Tensor:
    """Attention [B, T, N, F] of heads that share the rows, whose features are keys and values.

    One product serves all queries that see the same rows: all of them, or the heads of a token that
    reads rows `ids_BTK` of its own, of which none is missing.
    """
    q_BTNF, num_new = q_BNTF.transpose(1, 2), q_BNTF.shape[2]
    q_BGMF, seen_1GMS = q_BTNF, None
    if ids_BTK is not None:
        rows_BGSF = rows.at(ids_BTK)
    else:
        rows_BGSF = rows.room[:, : rows.length].unsqueeze(1)
        if num_new > 1:
            q_BGMF = q_BTNF.flatten(1, 2).unsqueeze(1)
            seen_1TS = past(num_new, rows.length, q_BNTF.device)
            seen_1GMS = seen_1TS.repeat_interleave(q_BTNF.shape[2], dim=1).unsqueeze(1)
    k_BGSF, v_BGSF = rows_BGSF[..., keys], rows_BGSF[..., values]
    y_BGMF = F.scaled_dot_product_attention(q_BGMF, k_BGSF, v_BGSF, seen_1GMS, scale=scale)
    return y_BGMF.reshape(*q_BTNF.shape[:3], -1)


def reads_less(ids_BTK: Tensor, length: int) -> bool:
    """Whether new tokens read fewer rows by their ids than there are.

    Then each has K past tokens, and no id is missing: there were T (K - 1) before the first.
    """
    return ids_BTK.shape[1] * ids_BTK.shape[2] <= length


class LatentRows:
    """Latents and rotary keys, which serve all heads.

    Few queries are brought into the space of the latents, q . (W c) = (W^T q) . c, and values are
    made of mean latents; many queries expand every latent once.
    """

    def __init__(self, flow: CompressedFlow | V32Attention, capacity: int) -> None:
        if isinstance(flow, V32Attention):
            k_up, v_up, self.out = (flow.selected[name] for name in "kvo")
            self.norm = flow.compressed["kv_norm"]
        else:
            k_up, v_up, self.out, self.norm = flow.k_up, flow.v_up, flow.o, flow.norm
        num_heads = len(weight_of(v_up)) // flow.head_width
        self.k_up_NHR = weight_of(k_up).unflatten(0, (num_heads, -1))
        self.v_up_NRH = weight_of(v_up).unflatten(0, (num_heads, -1)).mT
        self.mix, self.rows = flow.mix, Rows(capacity)

    def look(
        self, q_BNTF: Tensor, latent_BTR: Tensor, k_rope_BTH: Tensor, ids_BTK: Tensor | None = None
    ) -> Tensor:
        """Output [B, T, D] of new tokens, kept; they look at `ids_BTK`, `None`: at all the past."""
        rows_BSF, rank = self.rows.grown(self.norm(latent_BTR), k_rope_BTH), latent_BTR.shape[-1]
        num_new = q_BNTF.shape[2]
        if not self.few(num_new, ids_BTK):
            seen = kept_by(ids_BTK, num_new, rows_BSF)
            return self.mix(q_BNTF, rows_BSF[..., :rank], rows_BSF[..., rank:], kept=seen)
        content, position = q_BNTF.tensor_split([-k_rope_BTH.shape[-1]], dim=-1)
        q_BNTR = content @ self.k_up_NHR
        # the rotary key stands among the values too: a fused kernel wants keys and values alike
        mean_BTNF = attend_rows(
            torch.cat([q_BNTR, position], dim=-1),
            *(self.rows, ids_BTK, slice(None), slice(None)),
            scale=q_BNTF.shape[-1] ** -0.5,
        )
        v_BNTH = mean_BTNF[..., :rank].transpose(1, 2) @ self.v_up_NRH
        return self.out(merged(v_BNTH))

    def few(self, num_new: int, ids_BTK: Tensor | None) -> bool:
        """Whether so many queries cost fewer multiplications in the space of the latents."""
        if ids_BTK is not None:
            return reads_less(ids_BTK, self.rows.length)
        _, rank, num_expanded = self.v_up_NRH.shape
        num_expanded += self.k_up_NHR.shape[1]  # features of a token and a head
        return num_new * (2 * rank - num_expanded) < rank * num_expanded


class SelectedRows:
    """One key and one value, of which a new token reads those that are selected."""

    def __init__(self, flow: SelectedFlow, capacity: int) -> None:
        self.flow, self.rows = flow, Rows(capacity)

    def look(self, q_BNTH: Tensor, k_BTH: Tensor, v_BTH: Tensor, ids_BTK: Tensor | None) -> Tensor:
        """Output [B, T, D] as `LatentRows.look`."""
        rows_BSF, width, num_new = self.rows.grown(k_BTH, v_BTH), k_BTH.shape[-1], q_BNTH.shape[2]
        if num_new == 1 if ids_BTK is None else reads_less(ids_BTK, self.rows.length):
            features = slice(width), slice(width, None)
            y_BTNH = attend_rows(q_BNTH, self.rows, ids_BTK, *features, scale=width**-0.5)
            return self.flow.o(y_BTNH.flatten(2))
        k_B1SH, v_B1SH = rows_BSF.unsqueeze(1).chunk(2, dim=-1)
        return self.flow.mix(q_BNTH, k_B1SH, v_B1SH, kept=kept_by(ids_BTK, num_new, rows_BSF))


class IndexerRows:
    """The indexer's keys."""

    def __init__(self, layer: DsaAttention, capacity: int) -> None:
        self.layer, self.rows = layer, Rows(capacity)

    def normed(self, y_BTF: Tensor) -> Tensor:
        """`y_BTF`, whose last features, the indexer's keys, are normed in place."""
        k_BTH = y_BTF[..., -self.layer.indexer.head_width :]
        k_BTH.copy_(self.layer.indexer.k_norm(k_BTH))
        return y_BTF

    def chosen(self, q_BTF: Tensor, w_BTI: Tensor, k_BTH: Tensor) -> Tensor | None:
        """Ids [B, T, K] of the keys that new tokens look at, -1 for none; `None`: all the past.

        The weights of the heads need no scale here.
        """
        layer, k_BSH = self.layer, self.rows.grown(k_BTH)
        num_kept, length = layer.num_kept, k_BSH.shape[1]
        if num_kept >= length:
            return None
        forced = layer.num_sink, layer.num_local
        if q_BTF.shape[1] > 1:
            q_BITH = heads(q_BTF, layer.indexer.head_width)
            return select(layer.indexer.score(q_BITH, w_BTI, k_BSH), num_kept, *forced)
        q_BIH = q_BTF.reshape(len(q_BTF), layer.indexer.num_heads, -1)
        scores_B1S = torch.bmm(w_BTI, torch.bmm(q_BIH, k_BSH.mT).relu_())
        scores_B1S[..., : layer.num_sink].fill_(torch.inf)
        scores_B1S[..., length - layer.num_local :].fill_(torch.inf)
        best_B1K, ids_B1K = scores_B1S.topk(num_kept + 1)
        if bool((best_B1K[..., -2] > best_B1K[..., -1]).all()):
            return ids_B1K[..., :-1]
        return select(scores_B1S, num_kept, *forced)  # a tie, which has a rule of its own


class BlockRows:
    """Windows; and tokens that are still seen one by one, or wait for their window to close."""

    def __init__(self, flow: BlockFlow, capacity: int) -> None:
        self.flow, self.length = flow, 0
        self.windows = Rows(capacity // flow.window + 1)
        self.tail: list[Tensor] = []  # rows and gate logits of the last tokens

    def look(self, q_BNTH: Tensor, latent_BTR: Tensor, *others: Tensor) -> Tensor:
        """Output [B, T, D] of new tokens, kept; `others` are rotary keys and the gate's output."""
        flow, size, num_new = self.flow, self.flow.window, q_BNTH.shape[2]
        *rotary_keys, gate_BTN = others
        start, end = self.length, self.length + num_new
        tail = [flow.rows(latent_BTR, *rotary_keys), flow.logits(gate_BTN, start)]
        if self.tail:
            tail = [torch.cat(pair, dim=2) for pair in zip(self.tail, tail)]
        num_waiting = max(end % size, min(end, flow.num_local - 1))
        self.tail, self.length = [part[:, :, part.shape[2] - num_waiting :] for part in tail], end
        num_open = start % size + num_new  # tokens since the last closed window
        rows_BNSF, gate_BNS1 = (part[:, :, -num_open:] for part in tail)
        if num_new > 1:
            pools_BNSF = flow.pooled(rows_BNSF, gate_BNS1)
            closed_BNWF = self.windows.grown(pools_BNSF[:, :, size - 1 :: size])
            return flow.look(q_BNTH, pools_BNSF[:, :, -num_new:], closed_BNWF, tail[0], start)
        values = slice(flow.head_width, 2 * flow.head_width)
        open_BN1F = gate_BNS1.softmax(2).mT @ rows_BNSF[..., : values.stop]
        k_BNSH, v_BNSH = self.windows.grown(open_BN1F).chunk(2, dim=-1)
        if end % size:  # not closed: a longer one will take its place
            self.windows.length -= 1
        if flow.num_local:
            near_BNSF = tail[0][:, :, -flow.num_local :]
            k_BNSH = torch.cat([k_BNSH, flow.near_keys(near_BNSF)], dim=2)
            v_BNSH = torch.cat([v_BNSH, near_BNSF[..., values]], dim=2)
        return flow.o(attend_past(q_BNTH, k_BNSH, v_BNSH))

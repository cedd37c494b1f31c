"""`compression = "block"`: heads that see the past as pooled windows of tokens.

Each window of M tokens becomes one key and one value per head, by a learned softmax gate. A query
sees all closed windows before its own, and its own as far as it has come: pooled up to the query.
Only entries [T, S / M] are ever made. With `block_local` = L it sees the last L tokens one by one
as well, in the same softmax.

Relations. The gate with a bias for each position, non-overlapping windows, the key turned at the
window's start and the joint softmax with raw recent tokens are those of the heavily compressed
attention (HCA) of DeepSeek-V4 (its report, section 2.3.2, eqs. 20-23). There one key serves as
value too and for all heads, the gate is one per channel, and a window is invisible until it closes:
here it is pooled as it fills, so that without raw tokens a query still sees itself. The compressed
branch of NSA (arXiv 2502.11089, eq. 7) pools by an MLP with positions inside the block instead,
l = 32 tokens a block and a block every d = 16, so that they overlap, and has a softmax of its own,
added to other branches by a gate per head; here both flows are added by their output matrices.

B batch, T query tokens, S key tokens, D width, N heads, H head width, W windows, M tokens of a
window, C chunks of queries, F what a token or a window is to a head: key, value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import CompressedFlow, heads, linear, merged, stacked
from dsa_sandbox.core.indexer import causal_mask
from dsa_sandbox.core.rope import Rope, Table, rotate
from dsa_sandbox.registry import compressions


@compressions.register("block")
class BlockFlow(CompressedFlow):
    """The latent attention of `CompressedFlow` over windows, with a gate logit for each head.

    The logit of token t in window w is W x[t] + bias[t - w M]. As it is one number for a head,
    pooling commutes with the up-projections and with the rotation, which are done first.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.window, self.num_local = model.block_size, model.block_local
        num_heads = model.num_heads - model.num_selected_heads
        self.gate = linear(model.width, num_heads)
        self.gate_bias = nn.Parameter(torch.zeros(num_heads * self.window))  # born as the mean

    def project(self, x_BTD: Tensor, table: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H]; of each token its row [B, N, S, F] and its gate logit [B, N, S, 1].

        A row is content key, rotary key turned at the window's start, value, and where single
        tokens are seen the rotary key turned at its own place.
        """
        layers = self.q, self.down, self.k_rope, self.gate
        q_BTF, latent_BTR, k_rope_BTH, gate_BTN = stacked(x_BTD, *layers)
        content, position = heads(q_BTF, self.head_width).chunk(2, dim=-1)
        q_BNTH = torch.cat([content, rotate(position, table)], dim=-1)
        opening = None if table is None else self.opening(table)
        tables = [opening, table] if self.num_local else [opening]
        rotary_keys = [rotate(k_rope_BTH, turn) for turn in tables]
        return q_BNTH, self.rows(latent_BTR, *rotary_keys), self.logits(gate_BTN)

    def opening(self, table: Table) -> Table:
        """The table in which every token stands where its window begins."""
        position_T = torch.arange(len(table.cos_TH), device=table.cos_TH.device)
        begin_T = position_T - position_T % self.window
        return Table(table.cos_TH[begin_T], table.sin_TH[begin_T])

    def rows(self, latent_BTR: Tensor, *k_rope_BTH: Tensor) -> Tensor:
        """The rows of tokens, from what of them serves all heads."""
        k_BTF, v_BTF = stacked(self.norm(latent_BTR.float()), self.k_up, self.v_up)
        k_BNTH, v_BNTH = heads(k_BTF, self.half_width), heads(v_BTF, self.head_width)
        pooled, *near = (part.unsqueeze(1).expand_as(k_BNTH) for part in k_rope_BTH)
        return torch.cat([k_BNTH, pooled, v_BNTH, *near], dim=-1)

    def logits(self, gate_BTN: Tensor, start: int = 0) -> Tensor:
        """Gate logits [B, N, T, 1] of the tokens from `start` on, in fp32."""
        first, num_new = start % self.window, gate_BTN.shape[1]
        bias_NM = self.gate_bias.view(-1, self.window)
        bias_NT = bias_NM.repeat(1, -(-(first + num_new) // self.window))[:, first:][:, :num_new]
        return (gate_BTN.transpose(1, 2).float() + bias_NT).unsqueeze(-1)

    def mix(self, q_BNTH: Tensor, *states: Tensor, kept: Tensor | None = None) -> Tensor:
        rows_BNSF, gate_BNS1 = states
        assert kept is None, "windows are seen, not chosen tokens"
        pools_BNSF = self.pooled(rows_BNSF, gate_BNS1)
        closed_BNWF = pools_BNSF[:, :, self.window - 1 :: self.window]
        return self.look(q_BNTH, pools_BNSF, closed_BNWF, rows_BNSF)

    def pooled(self, rows_BNSF: Tensor, gate_BNS1: Tensor) -> Tensor:
        """Each token's window up to it, [B, N, S, F]; the first token opens a window."""
        length, size = rows_BNSF.shape[2], self.window
        pad = (0, 0, 0, -length % size)
        rows_BNWMF = F.pad(rows_BNSF[..., : 2 * self.head_width], pad).unflatten(2, (-1, size))
        gate_BNW1M = F.pad(gate_BNS1, pad).unflatten(2, (-1, size)).transpose(-1, -2)
        future_MM = ~causal_mask(size, rows_BNSF.device)
        weights_BNWMM = gate_BNW1M.float().masked_fill(future_MM, -torch.inf).softmax(-1)
        pools_BNWMF = weights_BNWMM.to(rows_BNSF.dtype) @ rows_BNWMF
        return pools_BNWMF.flatten(2, 3)[:, :, :length]

    def look(
        self,
        q_BNTH: Tensor,
        open_BNTF: Tensor,
        closed_BNWF: Tensor,
        rows_BNSF: Tensor,
        start: int = 0,
    ) -> Tensor:
        """Output [B, T, D] of the queries from `start` on.

        They see their own window as far as they have come, and those of the closed ones that lie
        before it. Single tokens end with the last query and begin where the first one's sight does.
        """
        width, num_closed = self.head_width, closed_BNWF.shape[2]
        q_BNTH = q_BNTH * width**-0.5
        position_T = torch.arange(start, start + q_BNTH.shape[2], device=q_BNTH.device)
        window_W = torch.arange(num_closed, device=q_BNTH.device)
        unseen_TW = window_W >= position_T.unsqueeze(-1) // self.window
        far_BNTW = (q_BNTH @ closed_BNWF[..., :width].mT).masked_fill(unseen_TW, -torch.inf)
        logits = [far_BNTW, (q_BNTH * open_BNTF[..., :width]).sum(-1, keepdim=True)]
        if self.num_local:
            logits.append(band_logits(q_BNTH, self.near_keys(rows_BNSF), self.num_local))
        weights = torch.cat(logits, dim=-1).float().softmax(-1).to(open_BNTF.dtype)
        far, own, near = weights.tensor_split([num_closed, num_closed + 1], dim=-1)
        values = slice(width, 2 * width)
        y_BNTH = far @ closed_BNWF[..., values] + own * open_BNTF[..., values]
        if self.num_local:
            y_BNTH = y_BNTH + band_mean(near, rows_BNSF[..., values], self.num_local)
        return self.o(merged(y_BNTH))

    def near_keys(self, rows_BNSF: Tensor) -> Tensor:
        """Keys [B, N, S, H] of single tokens."""
        content, position = rows_BNSF[..., : self.half_width], rows_BNSF[..., 2 * self.head_width :]
        return torch.cat([content, position], dim=-1)


def band_logits(q_BNTH: Tensor, k_BNSH: Tensor, num_local: int) -> Tensor:
    """Logits [B, N, T, L + Q] of the queries, the last T of S tokens, at the L tokens up to each.

    In chunks of Q = min(L, T) queries, each beside the L tokens before it and its own.
    """
    num_new, size = q_BNTH.shape[2], min(num_local, q_BNTH.shape[2])
    q_BNCQH = F.pad(q_BNTH, (0, 0, 0, -num_new % size)).unflatten(2, (-1, size))
    logits_BNCQK = q_BNCQH @ beside(k_BNSH, num_new, num_local).mT
    query_Q1 = torch.arange(size, device=q_BNTH.device)[:, None]
    key_K = torch.arange(-num_local, size, device=q_BNTH.device)
    first_C11 = torch.arange(0, num_new, size, device=q_BNTH.device)[:, None, None]
    is_token = first_C11 + key_K >= num_new - k_BNSH.shape[2]
    seen_CQK = (key_K <= query_Q1) & (key_K > query_Q1 - num_local) & is_token
    return logits_BNCQK.masked_fill(~seen_CQK, -torch.inf).flatten(2, 3)[:, :, :num_new]


def band_mean(weights_BNTK: Tensor, v_BNSH: Tensor, num_local: int) -> Tensor:
    """What the queries of `band_logits` take from its tokens, [B, N, T, H]."""
    num_new, size = weights_BNTK.shape[2], min(num_local, weights_BNTK.shape[2])
    weights_BNCQK = F.pad(weights_BNTK, (0, 0, 0, -num_new % size)).unflatten(2, (-1, size))
    return (weights_BNCQK @ beside(v_BNSH, num_new, num_local)).flatten(2, 3)[:, :, :num_new]


def beside(x_BNSH: Tensor, num_new: int, num_local: int) -> Tensor:
    """For each chunk of the last tokens, those before and in it, [B, N, C, L + Q, H]; 0 is none."""
    size = min(num_local, num_new)
    before = num_local + num_new - x_BNSH.shape[2]  # tokens that lack, or (negative) too many
    padded_BNSH = F.pad(x_BNSH, (0, 0, before, -num_new % size))
    return padded_BNSH.unfold(2, num_local + size, size).mT

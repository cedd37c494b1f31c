"""`compression = "block"`: compressed heads that see the past as pooled windows of tokens.

Each window of M tokens becomes one key and one value per head, pooled by a learned softmax gate. A
query attends to all closed windows before its own, and to its own window pooled up to the query:
no more than T * S / M entries are ever computed. With `block_local` = L it also attends to each of
the last L tokens, in the same softmax.

Relation to published methods. The heavily compressed attention (HCA) of DeepSeek-V4 (its report,
section 2.3.2, eqs. 20-23) has the same gate with a bias for each position, windows without overlap,
the key rotated at the start of its window, and one softmax over windows and recent tokens. HCA uses
one vector as key and value for all heads, has a gate for each channel, and hides a window until it
is closed. Here a window is pooled as it fills, so that a query sees itself even without
`block_local`. The compressed branch of NSA (arXiv 2502.11089, eq. 7) pools by an MLP, with windows
of l = 32 tokens that overlap (one every d = 16 tokens), and has a softmax of its own; a gate for
each head adds it to other branches. Here the output matrices add both flows.

B batch, T query tokens, S key tokens, D width, N heads, H head width, W windows, M tokens of a
window, L single tokens that a query sees, C chunks of Q queries each, F features of a token or a
window for one head (its key and its value), R latent rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import (
    CompressedFlow,
    linear,
    merge_heads,
    project_jointly,
    split_heads,
)
from dsa_sandbox.core.indexer import causal_mask
from dsa_sandbox.core.rope import at_least_fp32, rotate
from dsa_sandbox.registry import compressions


@compressions.register("block")
class BlockFlow(CompressedFlow):
    """The latent attention of `CompressedFlow` over windows; tokens have a gate logit per head.

    The logit of token t in window w is W x[t] + bias[t - w M]. Pooling weights are scalars, so
    pooling commutes with the up-projections and the rotation, which are applied to tokens first.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.window = model.block_size
        self.num_local = model.block_local
        num_heads = model.num_heads - model.num_selected_heads
        self.gate = linear(model.width, num_heads)
        # zeros: before training, the bias prefers no position of a window
        self.gate_bias = nn.Parameter(torch.zeros(num_heads * self.window))

    def project(self, x_BTD: Tensor, rope_2TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H], rows of tokens [B, N, S, F] and their gate logits [B, N, S, 1].

        A row is the content key, the rotary key rotated by the start of the window, and the value;
        with `block_local` also the rotary key rotated by the token's own position.
        """
        rope_2TH = rope_2TH[..., ::2]  # every second frequency, for the half that holds position
        layers = self.q, self.down, self.k_rope, self.gate
        q_BTF, latent_BTR, k_rope_BTH, gate_BTN = project_jointly(x_BTD, *layers)
        content, position = split_heads(q_BTF, self.head_width).chunk(2, dim=-1)
        q_BNTH = torch.cat([content, rotate(position, rope_2TH)], dim=-1)
        rotary_keys = [rotate(k_rope_BTH, self.window_starts(rope_2TH))]
        if self.num_local:
            rotary_keys.append(rotate(k_rope_BTH, rope_2TH))
        return q_BNTH, self.rows(latent_BTR, *rotary_keys), self.gate_logits(gate_BTN)

    def window_starts(self, rope_2TH: Tensor) -> Tensor:
        """The table in which every token has the position where its window starts."""
        position_T = torch.arange(rope_2TH.shape[1], device=rope_2TH.device)
        start_T = position_T - position_T % self.window
        return rope_2TH[:, start_T]

    def rows(self, latent_BTR: Tensor, *k_rope_BTH: Tensor) -> Tensor:
        """Rows [B, N, T, F] of tokens, from the latents and rotary keys that all heads share."""
        k_BTF, v_BTF = project_jointly(self.norm(at_least_fp32(latent_BTR)), self.k_up, self.v_up)
        content = split_heads(k_BTF, self.half_width)
        v_BNTH = split_heads(v_BTF, self.head_width)
        at_start, *at_token = [k_rope.unsqueeze(1).expand_as(content) for k_rope in k_rope_BTH]
        return torch.cat([content, at_start, v_BNTH, *at_token], dim=-1)

    def gate_logits(self, gate_BTN: Tensor, start: int = 0) -> Tensor:
        """Gate logits [B, N, T, 1] in fp32 of the tokens from position `start` on."""
        first = start % self.window
        num_new = gate_BTN.shape[1]
        num_windows = -(-(first + num_new) // self.window)  # rounded up
        bias_NM = self.gate_bias.view(-1, self.window)
        bias_NT = bias_NM.repeat(1, num_windows)[:, first:][:, :num_new]
        return (at_least_fp32(gate_BTN.transpose(1, 2)) + bias_NT).unsqueeze(-1)

    def mix(
        self, q_BNTH: Tensor, rows_BNSF: Tensor, gate_BNS1: Tensor, mask_BTS: Tensor | None = None
    ) -> Tensor:
        """Output [B, T, D] of all tokens of a sequence; windows cannot be masked token by token."""
        assert mask_BTS is None
        pools_BNSF = self.pooled(rows_BNSF, gate_BNS1)
        closed_BNWF = pools_BNSF[:, :, self.window - 1 :: self.window]
        return self.attend_windows(q_BNTH, pools_BNSF, closed_BNWF, rows_BNSF)

    def pooled(self, rows_BNSF: Tensor, gate_BNS1: Tensor) -> Tensor:
        """For each token its window pooled up to the token, [B, N, S, F].

        The first token must start a window.
        """
        length = rows_BNSF.shape[2]
        padding = (0, 0, 0, -length % self.window)
        rows_BNSF = F.pad(rows_BNSF[..., : 2 * self.head_width], padding)
        rows_BNWMF = rows_BNSF.unflatten(2, (-1, self.window))
        gate_BNWM1 = F.pad(gate_BNS1, padding).unflatten(2, (-1, self.window))
        gate_BNW1M = gate_BNWM1.transpose(-1, -2)
        # one softmax for each end of the window; later tokens, and padding, get a weight of 0
        future_MM = ~causal_mask(self.window, rows_BNSF.device)
        weights_BNWMM = at_least_fp32(gate_BNW1M).masked_fill(future_MM, -torch.inf).softmax(-1)
        pools_BNWMF = weights_BNWMM.to(rows_BNSF.dtype) @ rows_BNWMF
        return pools_BNWMF.flatten(2, 3)[:, :, :length]

    def attend_windows(
        self,
        q_BNTH: Tensor,
        open_BNTF: Tensor,
        closed_BNWF: Tensor,
        rows_BNSF: Tensor,
        start: int = 0,
    ) -> Tensor:
        """Output [B, T, D] of the queries from position `start` on.

        A query attends to its own window, pooled up to the query (`open_BNTF`), to the closed
        windows before it, and with `block_local` to single tokens (`rows_BNSF`). These end with the
        last query and begin with the first token that the first query sees.
        """
        width = self.head_width
        num_closed = closed_BNWF.shape[2]
        q_BNTH = q_BNTH * width**-0.5
        position_T = torch.arange(start, start + q_BNTH.shape[2], device=q_BNTH.device)
        window_W = torch.arange(num_closed, device=q_BNTH.device)
        unseen_TW = window_W >= position_T.unsqueeze(-1) // self.window
        closed_BNTW = (q_BNTH @ closed_BNWF[..., :width].mT).masked_fill(unseen_TW, -torch.inf)
        open_BNT1 = (q_BNTH * open_BNTF[..., :width]).sum(-1, keepdim=True)
        logits = [closed_BNTW, open_BNT1]
        if self.num_local:
            logits.append(local_logits(q_BNTH, self.token_keys(rows_BNSF), self.num_local))
        # windows and single tokens share one softmax
        weights = at_least_fp32(torch.cat(logits, dim=-1)).softmax(-1).to(open_BNTF.dtype)
        closed, open_, local = weights.tensor_split([num_closed, num_closed + 1], dim=-1)
        values = slice(width, 2 * width)
        y_BNTH = closed @ closed_BNWF[..., values] + open_ * open_BNTF[..., values]
        if self.num_local:
            y_BNTH = y_BNTH + local_mean(local, rows_BNSF[..., values], self.num_local)
        return self.o(merge_heads(y_BNTH))

    def token_keys(self, rows_BNSF: Tensor) -> Tensor:
        """Keys [B, N, S, H] of single tokens, rotated by their own positions."""
        content = rows_BNSF[..., : self.half_width]
        position = rows_BNSF[..., 2 * self.head_width :]
        return torch.cat([content, position], dim=-1)


def local_logits(q_BNTH: Tensor, k_BNSH: Tensor, num_local: int) -> Tensor:
    """Logits [B, N, T, L + Q] of the queries, the last T of S tokens, at the last L tokens of each.

    Computed in chunks of Q = min(L, T) queries: each chunk meets its own Q tokens and the L tokens
    before them. Tokens that a query does not see have -inf.
    """
    num_new = q_BNTH.shape[2]
    size = min(num_local, num_new)
    q_BNCQH = F.pad(q_BNTH, (0, 0, 0, -num_new % size)).unflatten(2, (-1, size))
    logits_BNCQK = q_BNCQH @ tokens_of_chunks(k_BNSH, num_new, num_local).mT
    # positions relative to the first query of a chunk
    query_Q1 = torch.arange(size, device=q_BNTH.device)[:, None]
    key_K = torch.arange(-num_local, size, device=q_BNTH.device)
    first_C11 = torch.arange(0, num_new, size, device=q_BNTH.device)[:, None, None]
    exists_C1K = first_C11 + key_K >= num_new - k_BNSH.shape[2]  # else before the first token
    seen_CQK = (key_K <= query_Q1) & (key_K > query_Q1 - num_local) & exists_C1K
    return logits_BNCQK.masked_fill(~seen_CQK, -torch.inf).flatten(2, 3)[:, :, :num_new]


def local_mean(weights_BNTK: Tensor, v_BNSH: Tensor, num_local: int) -> Tensor:
    """Values [B, N, T, H] averaged with the weights that belong to `local_logits`."""
    num_new = weights_BNTK.shape[2]
    size = min(num_local, num_new)
    weights_BNCQK = F.pad(weights_BNTK, (0, 0, 0, -num_new % size)).unflatten(2, (-1, size))
    y_BNCQH = weights_BNCQK @ tokens_of_chunks(v_BNSH, num_new, num_local)
    return y_BNCQH.flatten(2, 3)[:, :, :num_new]


def tokens_of_chunks(x_BNSH: Tensor, num_new: int, num_local: int) -> Tensor:
    """The Q tokens of each chunk and the L before them, [B, N, C, L + Q, H].

    The chunks cover the last `num_new` tokens. Zeros stand for tokens that do not exist.
    """
    size = min(num_local, num_new)
    # tokens missing before the first chunk; if negative, so many are superfluous and are cut off
    missing = num_local + num_new - x_BNSH.shape[2]
    padded_BNSH = F.pad(x_BNSH, (0, 0, missing, -num_new % size))
    return padded_BNSH.unfold(2, num_local + size, size).mT

"""`dsa-v32`: the topology of DeepSeek-V3.2 at toy size.

Multi-head latent attention on all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1), a lightning
indexer that reads the query latent, and its top-k for every head (DeepSeek-V3.2-Exp report, section
2, and its inference code). Weights map one to one to `DeepseekV32ForCausalLM` of transformers.

B batch, T query tokens, S key tokens, D width, N heads, H head width, R query rank, C latent rank.
"""

import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import DsaAttention, attend, heads, linear, merged, stacked
from dsa_sandbox.core.indexer import Indexer
from dsa_sandbox.core.rope import Table, half, rope_table, rotate
from dsa_sandbox.registry import archs


def rotate_pairs(x: Tensor, table: Table | None) -> Tensor:
    """RoPE on interleaved pairs (x0, x1), (x2, x3), ..; all firsts come out before all seconds.

    Queries and keys are reordered alike, so their products are those of the interleaved layout.
    """
    return rotate(torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1), table)


@archs.register("dsa-v32")
class V32Attention(DsaAttention):
    """DeepSeek-V3.2's attention: latent attention on all heads, over the indexer's top-k.

    `compressed` (frozen by ACFT): the down-projections to the query latent [R] and the key-value
    latent [C], their norms, and the rotary key that all heads share. `selected` (trained by ACFT):
    the up-projections to queries [H + H/2 a head], keys and values [H each], and the output.
    """

    compressed: nn.ModuleDict
    selected: nn.ModuleDict  # type: ignore[assignment]

    def make(self, model: Model) -> None:
        width, query_rank, rank = model.width, model.query_rank, model.latent_rank
        inner, num_rotary = model.num_heads * self.head_width, self.head_width // 2
        self.compressed = nn.ModuleDict(
            {
                "q": linear(width, query_rank),
                "q_norm": nn.RMSNorm(query_rank, eps=model.norm_eps),
                "kv": linear(width, rank),
                "kv_norm": nn.RMSNorm(rank, eps=model.norm_eps),
                "k_rope": linear(width, num_rotary),
            }
        )
        self.selected = nn.ModuleDict(
            {
                "q": linear(query_rank, inner + model.num_heads * num_rotary),
                "k": linear(rank, inner),
                "v": linear(rank, inner),
                "o": linear(inner, width),
            }
        )
        num_indexer = model.indexer_heads * model.indexer_head_width
        self.indexer = Indexer(model)
        self.indexer.q = linear(query_rank, num_indexer)  # it reads the query latent, and rotates
        self.indexer.cos_TH, self.indexer.sin_TH = rope_table(
            model.context, num_rotary, model.rope_base
        )

    def scores(self, x_BTD: Tensor) -> Tensor:
        return self.indexer(x_BTD, self.query(x_BTD))

    @torch.no_grad()  # the indexer's loss ends at what it reads
    def query(self, x_BTD: Tensor) -> Tensor:
        """The query latent [B, T, R], as the indexer reads it."""
        return self.compressed["q_norm"](self.compressed["q"](x_BTD).float())

    def project(self, x_BTD: Tensor, table: Table | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H + H/2], content first; the latent [B, S, C] and the rotary key."""
        flow, table = self.compressed, half(table)
        q_BTR, kv_BTC, k_rope_BTH = stacked(x_BTD, flow["q"], flow["kv"], flow["k_rope"])
        q_BTF = self.selected["q"](flow["q_norm"](q_BTR.float()))
        content, position = heads(q_BTF, self.head_width * 3 // 2).split(
            [self.head_width, self.head_width // 2], dim=-1
        )
        q_BNTF = torch.cat([content, rotate_pairs(position, table)], dim=-1)
        return q_BNTF, flow["kv_norm"](kv_BTC.float()), rotate_pairs(k_rope_BTH, table)

    def expand(self, kv_BSC: Tensor, k_rope_BSH: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, N, S, H + H/2] and values [B, N, S, H] of the latent."""
        k_BSF, v_BSF = stacked(kv_BSC, self.selected["k"], self.selected["v"])
        k_BNSH, v_BNSH = heads(k_BSF, self.head_width), heads(v_BSF, self.head_width)
        position = k_rope_BSH.unsqueeze(1).expand(-1, k_BNSH.shape[1], -1, -1)
        return torch.cat([k_BNSH, position], dim=-1), v_BNSH

    def mix(self, q_BNTF: Tensor, *states: Tensor, kept: Tensor | None) -> Tensor:
        """Output [B, T, D]."""
        return self.selected["o"](attend(q_BNTF, *self.expand(*states), kept))

    def attend(self, x_BTD: Tensor, table: Table | None, kept: Tensor | None) -> Tensor:
        return self.mix(*self.project(x_BTD, table), kept=kept)

    def attend_with_teacher(
        self, x_BTD: Tensor, table: Table | None, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        q_BNTF, *states = self.project(x_BTD, table)
        k_BNSF, v_BNSH = self.expand(*states)
        logits_BNTS = (q_BNTF * q_BNTF.shape[-1] ** -0.5 @ k_BNSF.transpose(-1, -2)).float()
        mask_B1TS = torch.where(support_BTS, 0.0, -torch.inf).unsqueeze(1)
        weights_BNTS = (logits_BNTS + mask_B1TS).softmax(-1)
        y_BNTH = weights_BNTS.to(v_BNSH.dtype) @ v_BNSH
        return self.selected["o"](merged(y_BNTH)), weights_BNTS.detach().mean(1)

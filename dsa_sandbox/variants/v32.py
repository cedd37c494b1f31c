"""`dsa-v32`: the topology of DeepSeek-V3.2 at toy size.

Multi-head latent attention on all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1), a lightning
indexer that reads the query latent, and its top-k for every head (DeepSeek-V3.2-Exp report, section
2, and its inference code). Weights map one to one to `DeepseekV32ForCausalLM` of transformers.

B batch, T query tokens, S key tokens, D width, N heads, H head width, F features of all heads (or,
after N, of one head: H + H/2), R query rank, C latent rank.
"""

import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import (
    TopKAttention,
    attend,
    linear,
    merge_heads,
    project_jointly,
    split_heads,
)
from dsa_sandbox.core.indexer import Indexer
from dsa_sandbox.core.rope import at_least_fp32, rotate
from dsa_sandbox.registry import archs


def rotate_pairs(x: Tensor, rope_2TH: Tensor) -> Tensor:
    """RoPE on interleaved pairs (x0, x1), (x2, x3), ...; the result is in the half-split layout.

    Queries and keys are reordered alike, so their products are those of the interleaved layout.
    """
    half_split = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    return rotate(half_split, rope_2TH)


@archs.register("dsa-v32")
class V32Attention(TopKAttention):
    """DeepSeek-V3.2's attention: latent attention on all heads, over the indexer's top-k.

    `compressed` (frozen by ACFT) holds the down-projections to the query latent [R] and the
    key-value latent [C], their norms, and the rotary key [H/2] that all heads share. `selected`
    (trained by ACFT) holds the up-projections to queries [H + H/2 per head], keys and values [H per
    head], and the output matrix.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        width = model.width
        all_heads = model.num_heads * self.head_width
        self.rotary_width = self.head_width // 2
        self.compressed = nn.ModuleDict(
            {
                "q": linear(width, model.query_rank),
                "q_norm": nn.RMSNorm(model.query_rank, eps=model.norm_eps),
                "kv": linear(width, model.latent_rank),
                "kv_norm": nn.RMSNorm(model.latent_rank, eps=model.norm_eps),
                "k_rope": linear(width, self.rotary_width),
            }
        )
        self.selected = nn.ModuleDict(
            {
                "q": linear(model.query_rank, all_heads + model.num_heads * self.rotary_width),
                "k": linear(model.latent_rank, all_heads),
                "v": linear(model.latent_rank, all_heads),
                "o": linear(all_heads, width),
            }
        )
        # DeepSeek rotates as many features of an indexer head as of an attention head
        self.indexer = Indexer(model, model.query_rank, self.rotary_width)

    @torch.no_grad()  # the indexer's loss does not train the matrices of its input
    def indexer_query(self, x_BTD: Tensor) -> Tensor:
        """The query latent [B, T, R] without gradient, which the indexer reads."""
        return self.compressed["q_norm"](at_least_fp32(self.compressed["q"](x_BTD)))

    def project(self, x_BTD: Tensor, rope_2TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H + H/2], content first; latents [B, T, C]; rotary keys [B, T, H/2]."""
        down = self.compressed
        rope_2TH = rope_2TH[..., ::2]  # every second frequency: the rotary part has half the width
        q_BTR, kv_BTC, k_rope_BTH = project_jointly(x_BTD, down["q"], down["kv"], down["k_rope"])
        q_BTF = self.selected["q"](down["q_norm"](at_least_fp32(q_BTR)))
        q_BNTF = split_heads(q_BTF, self.head_width + self.rotary_width)
        content, position = q_BNTF.split([self.head_width, self.rotary_width], dim=-1)
        q_BNTF = torch.cat([content, rotate_pairs(position, rope_2TH)], dim=-1)
        return q_BNTF, down["kv_norm"](at_least_fp32(kv_BTC)), rotate_pairs(k_rope_BTH, rope_2TH)

    def expand(self, kv_BSC: Tensor, k_rope_BSH: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, N, S, H + H/2] and values [B, N, S, H], from latents and rotary keys."""
        k_BSF, v_BSF = project_jointly(kv_BSC, self.selected["k"], self.selected["v"])
        k_BNSH = split_heads(k_BSF, self.head_width)
        v_BNSH = split_heads(v_BSF, self.head_width)
        position = k_rope_BSH.unsqueeze(1).expand(-1, k_BNSH.shape[1], -1, -1)
        return torch.cat([k_BNSH, position], dim=-1), v_BNSH

    def mix(
        self, q_BNTF: Tensor, kv_BSC: Tensor, k_rope_BSH: Tensor, mask_BTS: Tensor | None
    ) -> Tensor:
        """Output [B, T, D] over the keys of `mask_BTS` [B, T, S]; None: all past keys."""
        k_BNSF, v_BNSH = self.expand(kv_BSC, k_rope_BSH)
        return self.selected["o"](attend(q_BNTF, k_BNSF, v_BNSH, mask_BTS))

    def attend(self, x_BTD: Tensor, rope_2TH: Tensor, mask_BTS: Tensor | None) -> Tensor:
        return self.mix(*self.project(x_BTD, rope_2TH), mask_BTS)

    def attend_with_teacher(
        self, x_BTD: Tensor, rope_2TH: Tensor, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        q_BNTF, kv_BSC, k_rope_BSH = self.project(x_BTD, rope_2TH)
        k_BNSF, v_BNSH = self.expand(kv_BSC, k_rope_BSH)
        # written out, since the fused kernel of `attend` does not return the attention weights
        q_BNTF = q_BNTF * q_BNTF.shape[-1] ** -0.5
        logits_BNTS = at_least_fp32(q_BNTF @ k_BNSF.transpose(-1, -2))
        mask_B1TS = torch.where(support_BTS, 0.0, -torch.inf).unsqueeze(1)
        weights_BNTS = (logits_BNTS + mask_B1TS).softmax(-1)
        y_BNTH = weights_BNTS.to(v_BNSH.dtype) @ v_BNSH
        y_BTD = self.selected["o"](merge_heads(y_BNTH))
        return y_BTD, weights_BNTS.detach().mean(1)

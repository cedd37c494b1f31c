"""Attention with two flows (compressed and selected), and its dense control.

B batch, T query tokens, S key tokens, D width, N heads, H head width, F = N * H features of all
heads, R latent rank, K selected keys of a query.
No matrix serves two flows, or a flow and the indexer, so that ACFT can freeze whole Parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.indexer import Indexer, causal_mask, indexer_kl, select, selected_mask
from dsa_sandbox.core.rope import at_least_fp32, rotate
from dsa_sandbox.registry import compressions

# for which queries the indexer is trained: all, none, or those at the positions [Q]
Queries = bool | Tensor
# output [B, T, D], and the indexer's loss [B, T] or [B, Q] in nats, None if it is not computed
Output = tuple[Tensor, Tensor | None]


def linear(num_in: int, num_out: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(num_in, num_out, bias=False)


def split_heads(x_BTF: Tensor, head_width: int) -> Tensor:
    """[B, T, N * H] to [B, N, T, H]."""
    return x_BTF.unflatten(-1, (-1, head_width)).transpose(1, 2)


def merge_heads(x_BNTH: Tensor) -> Tensor:
    """[B, N, T, H] to [B, T, N * H]."""
    return x_BNTH.transpose(1, 2).flatten(-2)


def joint_weight(*layers: nn.Module, dim: int = 0) -> Tensor:
    """The weights of several linear layers, concatenated; gradients reach each of them."""
    return torch.cat([layer.get_parameter("weight") for layer in layers], dim)


def project_jointly(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of several linear layers for one input, computed by one matrix product."""
    widths = [layer.get_parameter("weight").shape[0] for layer in layers]
    return F.linear(x, joint_weight(*layers)).split(widths, dim=-1)


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_BTS: Tensor | None) -> Tensor:
    """Attention output [B, T, N * H] over the keys where `mask_BTS` [B, T, S] is True.

    Causal attention over all past keys (T = S) if `mask_BTS` is None.
    """
    mask = None if mask_BTS is None else mask_BTS.unsqueeze(1)  # the same for all heads
    y_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, mask, is_causal=mask is None)
    return merge_heads(y_BNTH)


class DenseAttention(nn.Module):
    """Standard multi-head attention in two head groups, of which ACFT trains one.

    With its keys and values cut to one head (`b1`; the other heads are `b2`), group `b` has the
    parameter count of a selected flow. Computes the same as `nn.MultiheadAttention`.
    """

    # by acft.group: the groups of parameters that ACFT trains
    focus: ClassVar[dict[str, tuple[str, ...]]] = {"matched": ("b", "b1"), "all": ("b", "b1", "b2")}

    def __init__(self, model: Model) -> None:
        super().__init__()
        width = model.width
        self.head_width = width // model.num_heads
        b_width = model.num_selected_heads * self.head_width
        a_width = width - b_width
        b2_width = b_width - self.head_width
        self.a = nn.ModuleDict({name: linear(width, a_width) for name in "qkv"})
        self.a["o"] = linear(a_width, width)
        self.b = nn.ModuleDict({"q": linear(width, b_width), "o": linear(b_width, width)})
        self.b1 = nn.ModuleDict({name: linear(width, self.head_width) for name in "kv"})
        self.b2 = nn.ModuleDict({name: linear(width, b2_width) for name in "kv"})

    def forward(
        self, x_BTD: Tensor, rope_2TH: Tensor, sparse: bool = True, train_indexer: Queries = False
    ) -> Output:
        """Output [B, T, D] and no loss: without an indexer, the last two arguments do nothing."""
        q_layers = self.a["q"], self.b["q"]
        k_layers = self.a["k"], self.b1["k"], self.b2["k"]
        v_layers = self.a["v"], self.b1["v"], self.b2["v"]
        qkv_BTF = F.linear(x_BTD, joint_weight(*q_layers, *k_layers, *v_layers))
        q_BTF, k_BTF, v_BTF = qkv_BTF.chunk(3, dim=-1)
        q_BNTH = rotate(split_heads(q_BTF, self.head_width), rope_2TH)
        k_BNTH = rotate(split_heads(k_BTF, self.head_width), rope_2TH)
        v_BNTH = split_heads(v_BTF, self.head_width)
        y_BTF = attend(q_BNTH, k_BNTH, v_BNTH, None)
        return F.linear(y_BTF, joint_weight(self.a["o"], self.b["o"], dim=1)), None


@compressions.register("latent")
class CompressedFlow(nn.Module):
    """Heads that see every past token through keys and values made from a low-rank latent.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): c = RMSNorm(W x) of
    rank R, keys and values of each head from c, and one rotary key that all heads share. One half
    of each query and key holds content, the other half position.

    As in `SelectedFlow`, `project` computes queries and the states of tokens, `mix` the output from
    both: decoding stores the states.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        width = model.width
        num_heads = model.num_heads - model.num_selected_heads
        self.head_width = width // model.num_heads
        self.half_width = self.head_width // 2
        self.q = linear(width, num_heads * self.head_width)
        self.down = linear(width, model.latent_rank)
        self.norm = nn.RMSNorm(model.latent_rank, eps=model.norm_eps)
        self.k_rope = linear(width, self.half_width)
        self.k_up = linear(model.latent_rank, num_heads * self.half_width)
        self.v_up = linear(model.latent_rank, num_heads * self.head_width)
        self.o = linear(num_heads * self.head_width, width)

    def forward(self, x_BTD: Tensor, rope_2TH: Tensor) -> Tensor:
        """Output [B, T, D]."""
        return self.mix(*self.project(x_BTD, rope_2TH), None)

    def project(self, x_BTD: Tensor, rope_2TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H], latents [B, T, R], rotary keys [B, T, H / 2]."""
        rope_2TH = rope_2TH[..., ::2]  # every second frequency, for the half that holds position
        q_BTF, latent_BTR, k_rope_BTH = project_jointly(x_BTD, self.q, self.down, self.k_rope)
        content, position = split_heads(q_BTF, self.head_width).chunk(2, dim=-1)
        q_BNTH = torch.cat([content, rotate(position, rope_2TH)], dim=-1)
        # in fp32, for under autocast the projection is in half precision
        return q_BNTH, self.norm(at_least_fp32(latent_BTR)), rotate(k_rope_BTH, rope_2TH)

    def mix(
        self, q_BNTH: Tensor, latent_BSR: Tensor, k_rope_BSH: Tensor, mask_BTS: Tensor | None
    ) -> Tensor:
        """Output [B, T, D] over the keys of `mask_BTS` [B, T, S]; None: all past keys."""
        k_BSF, v_BSF = project_jointly(latent_BSR, self.k_up, self.v_up)
        content = split_heads(k_BSF, self.half_width)
        position = k_rope_BSH.unsqueeze(1).expand_as(content)
        k_BNSH = torch.cat([content, position], dim=-1)
        v_BNSH = split_heads(v_BSF, self.head_width)
        return self.o(attend(q_BNTH, k_BNSH, v_BNSH, mask_BTS))


class SelectedFlow(nn.Module):
    """Heads that attend to the selected keys only, with one key and value head for all of them.

    This is multi-query attention, the form in which DeepSeek-V3.2 runs its sparse attention.
    """

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q = linear(width, num_heads * head_width)
        self.k = linear(width, head_width)
        self.v = linear(width, head_width)
        self.o = linear(num_heads * head_width, width)

    def forward(self, x_BTD: Tensor, rope_2TH: Tensor, mask_BTS: Tensor | None) -> Tensor:
        """Output [B, T, D] over the keys of `mask_BTS` [B, T, S]; None: all past keys."""
        return self.mix(*self.project(x_BTD, rope_2TH), mask_BTS)

    def project(self, x_BTD: Tensor, rope_2TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H], keys and values [B, 1, T, H] each."""
        q_BTF, k_BTH, v_BTH = project_jointly(x_BTD, self.q, self.k, self.v)
        q_BNTH = rotate(split_heads(q_BTF, self.head_width), rope_2TH)
        return q_BNTH, rotate(k_BTH, rope_2TH).unsqueeze(1), v_BTH.unsqueeze(1)

    def mix(
        self, q_BNTH: Tensor, k_B1SH: Tensor, v_B1SH: Tensor, mask_BTS: Tensor | None
    ) -> Tensor:
        """Output [B, T, D] over the keys of `mask_BTS` [B, T, S]; None: all past keys."""
        k_BNSH, v_BNSH = (x.expand(-1, q_BNTH.shape[1], -1, -1) for x in (k_B1SH, v_B1SH))
        return self.o(attend(q_BNTH, k_BNSH, v_BNSH, mask_BTS))

    def forward_with_teacher(
        self, x_BTD: Tensor, rope_2TH: Tensor, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output [B, T, D] over the keys of `support_BTS`, and the indexer's teacher [B, T, S].

        The teacher is the attention over the same keys, averaged over the heads of this flow, so
        that each row sums to one. It carries no gradient.
        """
        q_BNTH, k_B1SH, v_B1SH = self.project(x_BTD, rope_2TH)
        shape_NT = q_BNTH.shape[1:3]
        # All heads share the key: M = N * T queries meet it in one product. The fused kernel of
        # `attend` would not return the attention weights.
        q_BMH = q_BNTH.flatten(1, 2) * self.head_width**-0.5
        logits_BMS = at_least_fp32(q_BMH @ k_B1SH.squeeze(1).transpose(-1, -2))
        mask_B1TS = torch.where(support_BTS, 0.0, -torch.inf).unsqueeze(1)
        weights_BNTS = logits_BMS.unflatten(1, shape_NT).add_(mask_B1TS).softmax(-1)
        y_BMH = weights_BNTS.to(v_B1SH.dtype).flatten(1, 2) @ v_B1SH.squeeze(1)
        y_BTD = self.o(merge_heads(y_BMH.unflatten(1, shape_NT)))
        return y_BTD, weights_BNTS.detach().mean(1)


class TopKAttention(nn.Module, ABC):
    """Attention over the K keys that an indexer selects for each query, and the indexer's loss.

    A subclass creates `indexer` and defines both `attend` methods.
    """

    # by acft.group: the groups of parameters that ACFT trains
    focus: ClassVar[dict[str, tuple[str, ...]]] = {"matched": ("selected",), "all": ("selected",)}
    indexer: Indexer
    # computes `forward` in another way, with equal results up to rounding (selection.backends)
    backend: Callable[..., Output] | None = None
    # input [B, T, D] to scores [B, T, S], which replace those of the indexer (selection.policies)
    selector: Callable[[Tensor], Tensor] | None = None
    # the indexer's loss [B, T] or [B, Q], in place of that over the attended keys; the output then
    # is that without a loss (selection.rewarming)
    lesson: Callable[..., Tensor] | None = None

    def __init__(self, model: Model) -> None:
        super().__init__()
        # K; the policy `all` raises the latter to the context
        self.configured_num_kept = self.num_kept = model.num_kept
        self.num_sink = model.force_sink
        self.num_local = model.force_local
        self.head_width = model.width // model.num_heads

    @abstractmethod
    def attend(self, x_BTD: Tensor, rope_2TH: Tensor, mask_BTS: Tensor | None) -> Tensor:
        """Output [B, T, D] over the keys of `mask_BTS` [B, T, S]; None: all past keys."""

    @abstractmethod
    def attend_with_teacher(
        self, x_BTD: Tensor, rope_2TH: Tensor, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output [B, T, D] as `attend`, and the indexer's teacher [B, T, S] without gradient."""

    def indexer_query(self, x_BTD: Tensor) -> Tensor:
        """The input [B, T, R] that the indexer's queries are projected from."""
        return x_BTD

    def selection_scores(self, x_BTD: Tensor) -> Tensor:
        """Scores [B, T, S] by which keys are selected: of the indexer, or of `selector` if set."""
        if self.selector is not None:
            return self.selector(x_BTD)
        return self.indexer(x_BTD, self.indexer_query(x_BTD))

    def forward(
        self, x_BTD: Tensor, rope_2TH: Tensor, sparse: bool = True, train_indexer: Queries = False
    ) -> Output:
        """Output [B, T, D], and the indexer's loss if `train_indexer` asks for it.

        `train_indexer`: True for the loss of every query, a tensor [Q] for that of the queries at
        these positions. `sparse=False` attends to all past keys, as in the dense phase of training.
        """
        length = x_BTD.shape[1]
        sparse = sparse and self.num_kept < length  # K >= T selects every past key
        needs_loss = train_indexer is not False
        if needs_loss and self.lesson is not None:
            y_BTD, _ = self.forward(x_BTD, rope_2TH, sparse)
            return y_BTD, self.lesson(self, x_BTD, rope_2TH, train_indexer)
        if not sparse and not needs_loss:
            return self.attend(x_BTD, rope_2TH, None), None
        if self.backend is not None:
            return self.backend(self, x_BTD, rope_2TH, sparse, train_indexer)

        # the selected ids carry no gradient, so only the loss needs that of the scores
        with torch.set_grad_enabled(needs_loss and torch.is_grad_enabled()):
            scores_BTS = self.selection_scores(x_BTD)
        selected_BTS = causal_mask(length, x_BTD.device).expand_as(scores_BTS)
        if sparse:
            ids_BTK = select(scores_BTS, self.num_kept, self.num_sink, self.num_local)
            selected_BTS = selected_mask(ids_BTK, length)
        if not needs_loss:
            return self.attend(x_BTD, rope_2TH, selected_BTS), None

        y_BTD, teacher_BTS = self.attend_with_teacher(x_BTD, rope_2TH, selected_BTS)
        rows = slice(None) if train_indexer is True else train_indexer
        return y_BTD, indexer_kl(scores_BTS[:, rows], teacher_BTS[:, rows], selected_BTS[:, rows])


class DsaAttention(TopKAttention):
    """A compressed flow plus a selected flow: y = W_oc [compressed] + W_os [selected]."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.compressed = compressions[model.compression](model)
        self.selected = SelectedFlow(model.width, model.num_selected_heads, self.head_width)
        self.indexer = Indexer(model, model.width, model.indexer_head_width // 2)

    def attend(self, x_BTD: Tensor, rope_2TH: Tensor, mask_BTS: Tensor | None) -> Tensor:
        return self.compressed(x_BTD, rope_2TH) + self.selected(x_BTD, rope_2TH, mask_BTS)

    def attend_with_teacher(
        self, x_BTD: Tensor, rope_2TH: Tensor, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        y_BTD, teacher_BTS = self.selected.forward_with_teacher(x_BTD, rope_2TH, support_BTS)
        return self.compressed(x_BTD, rope_2TH) + y_BTD, teacher_BTS

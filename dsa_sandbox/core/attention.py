"""Attention with two flows (compressed and selected), and its dense control.

B batch, T query tokens, S key tokens, D width, N heads, H head width, R latent rank, K kept keys.
No matrix feeds two flows, or a flow and the indexer: what is frozen is a set of whole Parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.indexer import Indexer, causal_mask, indexer_kl, kept_mask, select
from dsa_sandbox.core.rope import Rope, half, rotate
from dsa_sandbox.registry import compressions

Teach = bool | Tensor  # whether the indexer is taught, or about which queries [Q] of each sequence
Out = tuple[Tensor, Tensor | None]  # output [B, T, D], and the indexer's loss [B, T] or [B, Q]
Pair = tuple[Tensor, Tensor]


def linear(num_in: int, num_out: int) -> nn.Linear:
    """A matrix without bias."""
    return nn.Linear(num_in, num_out, bias=False)


def heads(x_BTF: Tensor, head_width: int) -> Tensor:
    """[B, T, N * H] as [B, N, T, H]."""
    return x_BTF.unflatten(-1, (-1, head_width)).transpose(1, 2)


def merged(x_BNTH: Tensor) -> Tensor:
    """[B, N, T, H] as [B, T, N * H]."""
    return x_BNTH.transpose(1, 2).flatten(-2)


def stacked(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of several matrices on one input, by a single product; they stay Parameters."""
    widths = [layer.get_parameter("weight").shape[0] for layer in layers]
    return at_once(x, layers).split(widths, dim=-1)


def at_once(x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    """The same, side by side."""
    return F.linear(x, torch.cat([layer.get_parameter("weight") for layer in layers]))


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, kept: Tensor | None) -> Tensor:
    """[B, T, N * H]; `kept` [B, T, S] says who may look where, `None`: at all the past (T = S)."""
    mask = None if kept is None else kept.unsqueeze(1)
    states = (q_BNTH, k_BNSH, v_BNSH)
    return merged(F.scaled_dot_product_attention(*states, attn_mask=mask, is_causal=mask is None))


class Flow(nn.Module, ABC):
    """Attention in two halves, so that tokens may be remembered between them.

    `project` makes queries and all that is kept of a token; `mix` makes the output of queries and
    of what was kept.
    """

    def forward(self, x_BTD: Tensor, table: Rope, kept: Tensor | None = None) -> Tensor:
        """Output [B, T, D]; `kept` as `attend` has it."""
        return self.mix(*self.project(x_BTD, table), kept=kept)

    @abstractmethod
    def project(self, x_BTD: Tensor, table: Rope) -> tuple[Tensor, ...]:
        """Queries, and what is kept of each token; the last axis but one counts tokens."""

    @abstractmethod
    def mix(self, q_BNTH: Tensor, *states: Tensor, kept: Tensor | None) -> Tensor:
        """Output [B, T, D]."""


class DenseAttention(nn.Module):
    """Standard multi-head attention; two head groups let ACFT train one of them alone.

    Group `b` has the parameter count of a selected flow once its keys and values are cut to one
    head (`b1`); the rest of them is `b2`. The mathematics is that of `nn.MultiheadAttention`.
    """

    focus: ClassVar[dict[str, tuple[str, ...]]] = {"matched": ("b", "b1"), "all": ("b", "b1", "b2")}

    def __init__(self, model: Model) -> None:
        super().__init__()
        width, self.head_width = model.width, model.width // model.num_heads
        b_width = model.num_selected_heads * self.head_width
        a_width, b2_width = width - b_width, b_width - self.head_width
        self.a = nn.ModuleDict({name: linear(width, a_width) for name in "qkv"})
        self.a["o"] = linear(a_width, width)
        self.b = nn.ModuleDict({"q": linear(width, b_width), "o": linear(b_width, width)})
        self.b1 = nn.ModuleDict({name: linear(width, self.head_width) for name in "kv"})
        self.b2 = nn.ModuleDict({name: linear(width, b2_width) for name in "kv"})

    def forward(self, x_BTD: Tensor, table: Rope, sparse: bool = True, teach: Teach = False) -> Out:
        """Output [B, T, D]; `sparse` and `teach` change nothing here, there is no indexer."""
        return self.mix(*self.project(x_BTD, table), kept=None), None

    def project(self, x_BTD: Tensor, table: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, N, T, H] each, by one product."""
        groups = ((self.a, self.b), (self.a, self.b1, self.b2), (self.a, self.b1, self.b2))
        layers = [group[name] for name, several in zip("qkv", groups) for group in several]
        parts = at_once(x_BTD, layers).chunk(3, dim=-1)
        q, k, v = (heads(part_BTD, self.head_width) for part_BTD in parts)
        return rotate(q, table), rotate(k, table), v

    def mix(self, q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, kept: Tensor | None) -> Tensor:
        """Output [B, T, D]."""
        o_weight = torch.cat([group["o"].get_parameter("weight") for group in (self.a, self.b)], 1)
        return F.linear(attend(q_BNTH, k_BNSH, v_BNSH, kept), o_weight)


@compressions.register("latent")
class CompressedFlow(Flow):
    """Heads whose keys and values come from a low-rank latent, seeing every past token.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): c = RMSNorm(W x) of
    rank R, per-head k and v from c, and one decoupled rotary key shared by the heads. Half of each
    query and key carries content, half position.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        width, rank, head_width = model.width, model.latent_rank, model.width // model.num_heads
        num_heads = model.num_heads - model.num_selected_heads
        self.head_width, self.half_width = head_width, head_width // 2
        self.q = linear(width, num_heads * head_width)
        self.down = linear(width, rank)
        self.norm = nn.RMSNorm(rank, eps=model.norm_eps)
        self.k_rope = linear(width, self.half_width)
        self.k_up = linear(rank, num_heads * self.half_width)
        self.v_up = linear(rank, num_heads * head_width)
        self.o = linear(num_heads * head_width, width)

    def project(self, x_BTD: Tensor, table: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H], the latent [B, S, R], the rotary key; `table` has width H / 2."""
        q_BTF, latent_BTR, k_rope_BTH = stacked(x_BTD, self.q, self.down, self.k_rope)
        content, position = heads(q_BTF, self.head_width).chunk(2, dim=-1)
        q_BNTH = torch.cat([content, rotate(position, table)], dim=-1)
        return q_BNTH, self.norm(latent_BTR.float()), rotate(k_rope_BTH, table)

    def mix(self, q_BNTH: Tensor, *states: Tensor, kept: Tensor | None) -> Tensor:
        latent_BSR, k_rope_BSH = states
        k_BSF, v_BSF = stacked(latent_BSR, self.k_up, self.v_up)
        k_BNSH, v_BNSH = heads(k_BSF, self.half_width), heads(v_BSF, self.head_width)
        position = k_rope_BSH.unsqueeze(1).expand(-1, k_BNSH.shape[1], -1, -1)
        return self.o(attend(q_BNTH, torch.cat([k_BNSH, position], dim=-1), v_BNSH, kept))


class SelectedFlow(Flow):
    """Heads that look at the selected tokens only, through one shared key and value head.

    The multi-query form in which DeepSeek-V3.2 runs its sparse attention.
    """

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q = linear(width, num_heads * head_width)
        self.k = linear(width, head_width)
        self.v = linear(width, head_width)
        self.o = linear(num_heads * head_width, width)

    def project(self, x_BTD: Tensor, table: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, H], the key and the value head [B, 1, S, H] each."""
        q_BTF, k_BSH, v_BSH = stacked(x_BTD, self.q, self.k, self.v)
        q_BNTH = rotate(heads(q_BTF, self.head_width), table)
        return q_BNTH, rotate(k_BSH, table).unsqueeze(1), v_BSH.unsqueeze(1)

    def mix(self, q_BNTH: Tensor, *states: Tensor, kept: Tensor | None) -> Tensor:
        k_BNSH, v_BNSH = (x.expand(-1, q_BNTH.shape[1], -1, -1) for x in states)
        return self.o(attend(q_BNTH, k_BNSH, v_BNSH, kept))

    def forward_with_teacher(self, x_BTD: Tensor, table: Rope, support_BTS: Tensor) -> Pair:
        """Output as `forward`, and the indexer's teacher [B, T, S].

        The teacher is the attention over `support_BTS`, summed over the heads of this flow and
        scaled to sum to one.
        """
        q_BNTH, k_B1SH, v_B1SH = self.project(x_BTD, table)
        shape_NT = q_BNTH.shape[1:3]
        # one key head: the queries of all heads meet it in one product
        q_BMH = q_BNTH.flatten(1, 2) * self.head_width**-0.5
        logits_BMS = (q_BMH @ k_B1SH.squeeze(1).transpose(-1, -2)).float()
        mask_B1TS = torch.where(support_BTS, 0.0, -torch.inf).unsqueeze(1)
        weights_BNTS = logits_BMS.unflatten(1, shape_NT).add_(mask_B1TS).softmax(-1)
        y_BMH = weights_BNTS.to(v_B1SH.dtype).flatten(1, 2) @ v_B1SH.squeeze(1)
        return self.o(merged(y_BMH.unflatten(1, shape_NT))), weights_BNTS.detach().mean(1)


class DsaAttention(nn.Module):
    """A compressed flow plus a selected flow with separate matrices: y = W_oc [..] + W_os [..].

    A variant overrides `make`, `scores`, `attend` and `attend_with_teacher`. Where `backend` is
    set, it computes `forward` in another way (variants.backends), to the same numbers.
    """

    backend: Callable[..., Any] | None = None
    focus: ClassVar[dict[str, tuple[str, ...]]] = {"matched": ("selected",), "all": ("selected",)}

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.num_kept, self.num_sink = model.num_kept, model.force_sink
        self.num_local, self.head_width = model.force_local, model.width // model.num_heads
        self.make(model)

    def make(self, model: Model) -> None:
        """The matrices."""
        self.compressed = compressions[model.compression](model)
        self.selected = SelectedFlow(model.width, model.num_selected_heads, self.head_width)
        self.indexer = Indexer(model)

    def scores(self, x_BTD: Tensor) -> Tensor:
        """The indexer's scores [B, T, S]."""
        return self.indexer(x_BTD)

    def attend(self, x_BTD: Tensor, table: Rope, kept: Tensor | None) -> Tensor:
        """Output [B, T, D]; `kept` [B, T, S] says who may look where, `None`: at all the past."""
        return self.compressed(x_BTD, half(table)) + self.selected(x_BTD, table, kept)

    def attend_with_teacher(self, x_BTD: Tensor, table: Rope, support_BTS: Tensor) -> Pair:
        """Output as `attend`, and the indexer's teacher [B, T, S]."""
        y_BTD, teacher_BTS = self.selected.forward_with_teacher(x_BTD, table, support_BTS)
        return self.compressed(x_BTD, half(table)) + y_BTD, teacher_BTS

    def forward(self, x_BTD: Tensor, table: Rope, sparse: bool = True, teach: Teach = False) -> Out:
        """Output [B, T, D], and with `teach` the indexer's loss [B, T] (or of its queries), nats.

        `sparse=False` lifts the selection (the dense phase of training).
        """
        length, taught = x_BTD.shape[1], teach is not False
        sparse = sparse and self.num_kept < length
        if not (sparse or taught):
            return self.attend(x_BTD, table, None), None
        if self.backend is not None:
            return self.backend(self, x_BTD, table, sparse, teach)
        with torch.set_grad_enabled(taught and torch.is_grad_enabled()):
            scores_BTS = self.scores(x_BTD)
        kept_BTS = causal_mask(length, x_BTD.device).expand_as(scores_BTS)
        if sparse:
            ids_BTK = select(scores_BTS, self.num_kept, self.num_sink, self.num_local)
            kept_BTS = kept_mask(ids_BTK, length)
        if not taught:
            return self.attend(x_BTD, table, kept_BTS), None
        y_BTD, teacher_BTS = self.attend_with_teacher(x_BTD, table, kept_BTS)
        rows = slice(None) if teach is True else teach
        parts = (x_BTS[:, rows] for x_BTS in (scores_BTS, teacher_BTS, kept_BTS))
        return y_BTD, indexer_kl(*parts)

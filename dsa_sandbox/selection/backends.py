"""How sparse attention is computed: under a mask as in the core, or by a kernel.

Output, loss and gradients agree up to rounding. Where the core holds scores, masks and attention
weights [T, S], the kernels hold T * K numbers.

B batch, T tokens, D width, N heads, H key width, W value width, K selected keys, Q queries that the
indexer is trained on, C latent rank.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.attention import DsaAttention, Output, Queries, TopKAttention, merge_heads
from dsa_sandbox.core.indexer import select
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.errors import UserError
from dsa_sandbox.kernels import gather
from dsa_sandbox.kernels.attention import choose, no_triton, sparse_attention
from dsa_sandbox.kernels.indexing import (
    Scorer,
    Selection,
    Teacher,
    attention_at,
    dense_kl,
    select_chunked,
    sparse_kl,
)
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import archs
from dsa_sandbox.variants.v32 import V32Attention


class MultiQuery(NamedTuple):
    """Attention in multi-query form: one head of keys and values for all query heads."""

    q_BNTH: Tensor
    k_BTH: Tensor
    v_BTW: Tensor
    scale: float  # factor of the logits
    output: Callable[[Tensor], Tensor]  # head outputs [B, N, T, W] to the layer's output [B, T, D]


def multi_query_dsa(attention: DsaAttention, x_BTD: Tensor, rope_2TH: Tensor) -> MultiQuery:
    """The selected flow, which has this form; the compressed flow is added to its output."""
    flow = attention.selected
    q_BNTH, k_B1TH, v_B1TH = flow.project(x_BTD, rope_2TH)

    def output(o_BNTH: Tensor) -> Tensor:
        return attention.compressed(x_BTD, rope_2TH) + flow.o(merge_heads(o_BNTH))

    scale = attention.head_width**-0.5
    return MultiQuery(q_BNTH, k_B1TH.squeeze(1), v_B1TH.squeeze(1), scale, output)


def multi_query_v32(attention: V32Attention, x_BTD: Tensor, rope_2TH: Tensor) -> MultiQuery:
    """Multi-head latent attention in the absorbed form (DeepSeek-V2, section 2.1.2).

    The key matrix of each head is multiplied into its queries, and its value matrix is applied to
    its output. So all heads share the latent as value, and latent and rotary key as key.
    """
    width = attention.head_width
    q_BNTF, latent_BTC, k_rope_BTH = attention.project(x_BTD, rope_2TH)
    k_up_NHC = attention.selected["k"].get_parameter("weight").unflatten(0, (-1, width))
    v_up_NHC = attention.selected["v"].get_parameter("weight").unflatten(0, (-1, width))
    content_BNTH, position_BNTH = q_BNTF.split([width, q_BNTF.shape[-1] - width], dim=-1)
    q_BNTH = torch.cat([content_BNTH @ k_up_NHC, position_BNTH], dim=-1)
    k_BTH = torch.cat([latent_BTC, k_rope_BTH], dim=-1)

    def output(o_BNTC: Tensor) -> Tensor:
        return attention.selected["o"](merge_heads(o_BNTC @ v_up_NHC.transpose(-1, -2)))

    return MultiQuery(q_BNTH, k_BTH, latent_BTC, q_BNTF.shape[-1] ** -0.5, output)


# by exact class: a subclass may compute something else
MULTI_QUERY: dict[type, Callable[..., MultiQuery]] = {
    DsaAttention: multi_query_dsa,
    V32Attention: multi_query_v32,
}


def engine_for(resolved: Settings, engine: Engine) -> Engine:
    """The engine with `machine.attention` resolved; UserError if that backend cannot run here."""
    model = resolved.model
    name = str(resolved.machine.attention)
    if name == "auto":
        num_kept = model.context if archs.about(resolved.arch).keeps_all else model.num_kept
        known = type(sizes.layer_without_weights(resolved.arch, model)) in MULTI_QUERY
        name = choose(model.context, num_kept, engine.device) if known else "masked"
    elif name == "triton" and (why := no_triton(engine.device)) is not None:
        raise UserError(f"machine.attention=triton: {why}; use gather, or auto")
    return engine._replace(attention=name if sizes.has_indexer(resolved.arch, model) else "masked")


def use(model: Transformer, backend: str) -> None:
    """Compute sparse attention by `backend` from now on.

    Does nothing for a network without an indexer. UserError if no kernel can compute the
    architecture's attention.
    """
    compute = None
    if backend != "masked":
        # torch.compile would unroll the loops over chunks, and again for each sequence length
        compute = torch.compiler.disable(partial(forward, backend))
    for block in model.blocks:
        attention = block.attention
        if not isinstance(attention, TopKAttention):
            continue
        if compute is not None and type(attention) not in MULTI_QUERY:
            name = type(attention).__name__
            raise UserError(
                f"machine.attention={backend}: no kernel computes {name}; use masked, or auto"
            )
        attention.backend = compute


def forward(
    backend: str,
    attention: TopKAttention,
    x_BTD: Tensor,
    rope_2TH: Tensor,
    sparse: bool,
    train_indexer: Queries,
) -> Output:
    """`TopKAttention.forward` by a kernel, if it is `sparse` or the indexer's loss is needed."""
    needs_loss = train_indexer is not False
    with torch.set_grad_enabled(needs_loss and torch.is_grad_enabled()):
        query_BTR = attention.indexer_query(x_BTD)
        scorer = Scorer(*attention.indexer.project(x_BTD, query_BTR))
    multi_query = MULTI_QUERY[type(attention)]
    if not sparse:  # dense attention, and the loss over all past keys
        with torch.no_grad():  # here q and k serve the teacher only, which has no gradient
            q, k, _, scale, _ = multi_query(attention, x_BTD, rope_2TH)
        y_BTD = attention.attend(x_BTD, rope_2TH, None)
        return y_BTD, warmup_kl(scorer, Teacher(q, k, scale), train_indexer)

    q, k, v, scale, output = multi_query(attention, x_BTD, rope_2TH)
    k = k.to(q.dtype)  # under autocast, norms leave keys and values in fp32
    v = v.to(q.dtype)
    selection = selection_of(attention, scorer, x_BTD)
    ids_BTK = selection.ids_BTK
    weights_BTK = None
    if train_indexer is True and backend == "gather":  # it computes the teacher on the way
        o, lse, weights_BTK = gather.attention_and_weights(q, k, v, ids_BTK, scale=scale)
    else:
        o, lse = sparse_attention(q, k, v, ids_BTK, scale=scale, backend=backend)
    if not needs_loss:
        return output(o), None

    teacher = Teacher(q, k, scale, lse)
    queries_Q = None
    if isinstance(train_indexer, Tensor):  # the loss of these queries only
        queries_Q = train_indexer
        scorer = scorer.at(queries_Q)
        selection = selection.at(queries_Q)
        teacher = teacher.at(queries_Q)
    if weights_BTK is None:
        weights_BTK = attention_at(selection.ids_BTK, teacher, queries_Q)
    return output(o), sparse_kl(scorer, selection, weights_BTK, queries_Q)


def warmup_kl(scorer: Scorer, teacher: Teacher, train_indexer: Queries) -> Tensor:
    """The indexer's loss over all past keys, [B, T] or [B, Q], in nats."""
    if isinstance(train_indexer, Tensor):
        return dense_kl(scorer.at(train_indexer), teacher.at(train_indexer), train_indexer)
    return dense_kl(scorer, teacher)


def selection_of(attention: TopKAttention, scorer: Scorer, x_BTD: Tensor) -> Selection:
    """The keys that the indexer selects, or the layer's `selector` if it has one."""
    num_forced = attention.num_sink, attention.num_local
    if attention.selector is None:
        return select_chunked(scorer, attention.num_kept, *num_forced)
    scores_BTS = attention.selector(x_BTD)
    ids_BTK = select(scores_BTS, attention.num_kept, *num_forced)
    return Selection(ids_BTK, scores_BTS.gather(-1, ids_BTK.long().clamp_(min=0)))

"""How a network with a selection computes it: under a mask as the core does, or by a kernel.

The same numbers to rounding, forward and in every gradient. Where the core holds [T, S] scores,
masks and attention, this keeps T * K numbers.

B batch, T tokens, D width, N heads, H key width, W value width, K kept keys.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.attention import DsaAttention, Out, Teach, merged
from dsa_sandbox.core.indexer import select
from dsa_sandbox.core.rope import Rope, half
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


class States(NamedTuple):
    """A selected flow as one head of keys and values, which all its query heads share."""

    q_BNTH: Tensor
    k_BTH: Tensor
    v_BTW: Tensor
    scale: float
    output: Callable[[Tensor], Tensor]  # [B, N, T, W] to what the layer writes, [B, T, D]


def states_of_dsa(attention: DsaAttention, x_BTD: Tensor, table: Rope) -> States:
    """The selected flow is of this form; its output is joined by the compressed flow's."""
    flow = attention.selected
    q_BNTH, k_B1TH, v_B1TH = flow.project(x_BTD, table)

    def output(o_BNTH: Tensor) -> Tensor:
        return attention.compressed(x_BTD, half(table)) + flow.o(merged(o_BNTH))

    scale = attention.head_width**-0.5
    return States(q_BNTH, k_B1TH.squeeze(1), v_B1TH.squeeze(1), scale, output)


def states_of_v32(attention: V32Attention, x_BTD: Tensor, table: Rope) -> States:
    """Multi-head latent attention in its multi-query form (DeepSeek-V2, section 2.1.2).

    A head's key matrix is absorbed into its queries and its value matrix is applied to its output,
    so that the latent itself is what all heads look at: as keys with the rotary key beside it.
    """
    width = attention.head_width
    q_BNTF, latent_BTC, k_rope_BTH = attention.project(x_BTD, table)
    k_NHC, v_NHC = (
        attention.selected[name].get_parameter("weight").unflatten(0, (-1, width)) for name in "kv"
    )
    content_BNTH, position_BNTH = q_BNTF.split([width, q_BNTF.shape[-1] - width], dim=-1)
    q_BNTH = torch.cat([content_BNTH @ k_NHC, position_BNTH], dim=-1)
    k_BTH = torch.cat([latent_BTC, k_rope_BTH], dim=-1)

    def output(o_BNTC: Tensor) -> Tensor:
        return attention.selected["o"](merged(o_BNTC @ v_NHC.transpose(-1, -2)))

    return States(q_BNTH, k_BTH, latent_BTC, q_BNTF.shape[-1] ** -0.5, output)


FORMS: dict[type, Callable[..., States]] = {
    DsaAttention: states_of_dsa,
    V32Attention: states_of_v32,
}


def engine_for(resolved: Settings, engine: Engine) -> Engine:
    """The engine with its attention decided; UserError where the backend asked for cannot run."""
    model, name = resolved.model, str(resolved.machine.attention)
    if name == "auto":
        num_kept = model.context if archs.about(resolved.arch).keeps_all else model.num_kept
        known = type(sizes.layer_without_weights(resolved.arch, model)) in FORMS
        name = choose(model.context, num_kept, engine.device) if known else "masked"
    elif name == "triton" and (why := no_triton(engine.device)) is not None:
        raise UserError(f"machine.attention=triton: {why}; use gather, or auto")
    return engine._replace(attention=name if sizes.has_indexer(resolved.arch, model) else "masked")


def use(model: Transformer, backend: str) -> None:
    """Compute selections by `backend` from now on; a network without one is left as it is.

    UserError where an architecture's attention is of another form than the kernels know.
    """
    compute = None
    if backend != "masked":
        # torch.compile would unroll the loops over chunks, for each length anew
        compute = torch.compiler.disable(partial(forward, backend))
    for block in model.blocks:
        attention = block.attention
        if not isinstance(attention, DsaAttention):
            continue
        if compute is not None and type(attention) not in FORMS:
            name = type(attention).__name__
            raise UserError(f"machine.attention={backend}: no kernel knows {name}; use masked")
        attention.backend = compute


def forward(
    backend: str,
    attention: DsaAttention,
    x_BTD: Tensor,
    table: Rope,
    sparse: bool,
    teach: Teach,
) -> Out:
    """What `DsaAttention.forward` gives where the selection is sparse or the indexer is taught."""
    taught = teach is not False
    with torch.set_grad_enabled(taught and torch.is_grad_enabled()):
        scorer = scorer_of(attention, x_BTD)
    if not sparse:
        with torch.no_grad():
            q, k, _, scale, _ = FORMS[type(attention)](attention, x_BTD, table)
        return attention.attend(x_BTD, table, None), warmup_kl(scorer, Teacher(q, k, scale), teach)
    q, k, v, scale, output = FORMS[type(attention)](attention, x_BTD, table)
    k, v = k.to(q.dtype), v.to(q.dtype)
    selection = selection_of(attention, scorer, x_BTD)
    ids_BTK, weights_BTK = selection.ids_BTK, None
    if teach is True and backend == "gather":
        o, lse, weights_BTK = gather.attention_and_weights(q, k, v, ids_BTK, scale=scale)
    else:
        o, lse = sparse_attention(q, k, v, ids_BTK, scale=scale, backend=backend)
    if not taught:
        return output(o), None
    teacher, queries_Q = Teacher(q, k, scale, lse), None
    if isinstance(teach, Tensor):
        queries_Q = teach
        scorer, selection, teacher = scorer.at(teach), selection.at(teach), teacher.at(teach)
    if weights_BTK is None:
        weights_BTK = attention_at(selection.ids_BTK, teacher, queries_Q)
    return output(o), sparse_kl(scorer, selection, weights_BTK, queries_Q)


def warmup_kl(scorer: Scorer, teacher: Teacher, teach: Teach) -> Tensor:
    """The indexer's loss over all the past, [B, T] or [B, Q]."""
    if isinstance(teach, Tensor):
        return dense_kl(scorer.at(teach), teacher.at(teach), teach)
    return dense_kl(scorer, teacher)


def scorer_of(attention: DsaAttention, x_BTD: Tensor) -> Scorer:
    """What the indexer makes of the tokens, in fp32."""
    query_BTR = attention.query(x_BTD) if isinstance(attention, V32Attention) else None
    return Scorer(*attention.indexer.project(x_BTD, query_BTR))


def selection_of(attention: DsaAttention, scorer: Scorer, x_BTD: Tensor) -> Selection:
    """What the indexer chooses, or the control that stands in its place."""
    sizes = (attention.num_kept, attention.num_sink, attention.num_local)
    if "scores" not in vars(attention):
        return select_chunked(scorer, *sizes)
    scores_BTS = attention.scores(x_BTD)  # variants.policies
    ids_BTK = select(scores_BTS, *sizes)
    return Selection(ids_BTK, scores_BTS.gather(-1, ids_BTK.long().clamp_(min=0)))

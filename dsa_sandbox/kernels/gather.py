"""Attention over selected keys in chunks of queries, which keeps only inputs and output.

The backward pass computes the weights of each chunk again, as in FlashAttention (arXiv 2205.14135,
algorithm 4): memory grows with T * K, not with T * S.

B batch, T queries, S keys, N heads, H key width, W value width, K selected keys, R queries of a
chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox.core.rope import at_least_fp32
from dsa_sandbox.kernels.chunked import (
    Chunk,
    Support,
    Total,
    chunks,
    no_autocast,
)


def chunks_of(q_TNH: Tensor, k_SH: Tensor, v_SW: Tensor, ids_TK: Tensor) -> Iterator[Chunk]:
    """The queries of one sequence, its last T tokens, in chunks."""
    length = len(k_SH)
    copied = ids_TK.shape[-1] * max(k_SH.shape[-1], v_SW.shape[-1])
    positions = range(length - len(q_TNH), length)
    return chunks(positions, q_TNH.shape[1], copied, q_TNH.device)


class SparseAttention(torch.autograd.Function):
    """From queries [B, T, N, H]: output [B, T, N, W], lse [B, T, N] and attention [B, T, K].

    The attention is the mean over heads at each id; [B, T, 0] unless `with_attention`. Only the
    output has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTNH: Tensor,
        k_BSH: Tensor,
        v_BSW: Tensor,
        ids_BTK: Tensor,
        scale: float,
        with_attention: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        with no_autocast(q_BTNH.device):
            q = at_least_fp32(q_BTNH)
            k = at_least_fp32(k_BSH)
            v = at_least_fp32(v_BSW)
            for b in range(len(q)):
                found.append(forward_one(q[b], k[b], v[b], ids_BTK[b], scale, with_attention))
            o_BTNW, lse_BTN, attention_BTK = (torch.stack(parts) for parts in zip(*found))
        o_BTNW = o_BTNW.to(q_BTNH.dtype)
        lse_BTN = at_least_fp32(lse_BTN)
        ctx.save_for_backward(q_BTNH, k_BSH, v_BSW, ids_BTK, o_BTNW)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse_BTN, attention_BTK)
        return o_BTNW, lse_BTN, attention_BTK

    @staticmethod
    def backward(ctx: Any, do_BTNW: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        q_BTNH, k_BSH, v_BSW, ids_BTK, o_BTNW = ctx.saved_tensors
        found = []
        with no_autocast(q_BTNH.device):
            q, k, v, o, do = map(at_least_fp32, (q_BTNH, k_BSH, v_BSW, o_BTNW, do_BTNW))
            for b in range(len(q)):
                found.append(backward_one(q[b], k[b], v[b], o[b], do[b], ids_BTK[b], ctx.scale))
            dq, dk, dv = (torch.stack(parts) for parts in zip(*found))
        return dq.to(q_BTNH.dtype), dk.to(k_BSH.dtype), dv.to(v_BSW.dtype), None, None, None


def forward_one(
    q_TNH: Tensor, k_SH: Tensor, v_SW: Tensor, ids_TK: Tensor, scale: float, with_attention: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, N, W], lse [T, N] and attention [T, K] (or [T, 0]) of one sequence."""
    o_TNW = q_TNH.new_empty(*q_TNH.shape[:2], v_SW.shape[-1])
    lse_TN = q_TNH.new_empty(q_TNH.shape[:2])
    attention_TK = q_TNH.new_empty(len(q_TNH), ids_TK.shape[-1] if with_attention else 0)
    for rows, end in chunks_of(q_TNH, k_SH, v_SW, ids_TK):
        support = Support(ids_TK[rows], end)
        x_RNK = support.sampled(q_TNH[rows] * scale, support.keys(k_SH))
        p_RNK = support.softmax(x_RNK)
        o_TNW[rows] = support.weights(p_RNK).mixed(support.keys(v_SW))
        # p = exp(x - lse), solved for lse at the key with the largest weight
        lse_TN[rows] = x_RNK.amax(-1) - p_RNK.amax(-1).log()
        if with_attention:
            attention_TK[rows] = p_RNK.mean(1)
    lse_TN.masked_fill_(ids_TK[:, :1] < 0, -torch.inf)  # queries without ids
    return o_TNW, lse_TN, attention_TK


def backward_one(
    q_TNH: Tensor,
    k_SH: Tensor,
    v_SW: Tensor,
    o_TNW: Tensor,
    do_TNW: Tensor,
    ids_TK: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, keys and values of one sequence."""
    dq_TNH = torch.empty_like(q_TNH)
    dk = Total(k_SH)
    dv = Total(v_SW)
    # ds = p * (dp - delta) is the gradient of the softmax (FlashAttention, appendix B.2)
    delta_TN1 = (o_TNW * do_TNW).sum(-1, keepdim=True)
    for rows, end in chunks_of(q_TNH, k_SH, v_SW, ids_TK):
        support = Support(ids_TK[rows], end)
        keys = support.keys(k_SH)
        values = support.keys(v_SW)
        q_RNH = q_TNH[rows] * scale
        do_RNW = do_TNW[rows]
        p_RNK = support.softmax(support.sampled(q_RNH, keys))
        dp_RNK = support.fill_missing(support.sampled(do_RNW, values), 0.0)
        p = support.weights(p_RNK)
        p.added(dv, do_RNW)
        ds_RNK = dp_RNK.sub_(delta_TN1[rows]).mul_(p_RNK)
        ds = p.replace(ds_RNK)
        dq_TNH[rows] = ds.mixed(keys) * scale
        ds.added(dk, q_RNH)
    return dq_TNH, dk.value_SH, dv.value_SH


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W] and lse [B, N, T], as `attention.sparse_attention`."""
    o, lse, _ = SparseAttention.apply(q_BNTH.transpose(1, 2), k_BSH, v_BSW, ids_BTK, scale, False)
    return o.transpose(1, 2), lse.transpose(1, 2)


def attention_and_weights(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sparse_attention`, and the attention [B, T, K] at each id, averaged over heads.

    The latter equals `indexing.attention_at`.
    """
    q_BTNH = q_BNTH.transpose(1, 2)
    o, lse, weights_BTK = SparseAttention.apply(q_BTNH, k_BSH, v_BSW, ids_BTK, scale, True)
    return o.transpose(1, 2), lse.transpose(1, 2), weights_BTK

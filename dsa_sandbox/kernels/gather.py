"""Sparse attention in chunks of queries, from which nothing is kept but inputs and output.

The backward pass computes the weights of each chunk again, in the spirit of FlashAttention (arXiv
2205.14135, algorithm 4): memory grows with T * K, never with T * S.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys, R queries of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox.kernels.chunked import Chunk, Support, Total, chunks, plain, wide


def chunks_of(q_TNH: Tensor, k_SH: Tensor, v_SW: Tensor, ids_TK: Tensor) -> Iterator[Chunk]:
    """The queries of one sequence, which are its last tokens."""
    length, num_queries = len(k_SH), len(q_TNH)
    copied = ids_TK.shape[-1] * max(k_SH.shape[-1], v_SW.shape[-1])
    positions = range(length - num_queries, length)
    return chunks(positions, q_TNH.shape[1], copied, q_TNH.device)


class SparseAttention(torch.autograd.Function):
    """Of queries [B, T, N, H]: output [B, T, N, W], lse [B, T, N] and, if `taught`, the weights.

    The weights [B, T, K] are the mean over heads of the attention to each id.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTNH: Tensor,
        k_BSH: Tensor,
        v_BSW: Tensor,
        ids_BTK: Tensor,
        scale: float,
        taught: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with plain(q_BTNH.device):
            parts = zip(wide(q_BTNH), wide(k_BSH), wide(v_BSW), ids_BTK)
            o_BTNW, lse_BTN, weights_BTK = (
                torch.stack(x) for x in zip(*(one(*p, scale, taught) for p in parts))
            )
        o_BTNW, lse_BTN = o_BTNW.to(q_BTNH.dtype), lse_BTN.float()
        ctx.save_for_backward(q_BTNH, k_BSH, v_BSW, ids_BTK, o_BTNW)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse_BTN, weights_BTK)
        return o_BTNW, lse_BTN, weights_BTK

    @staticmethod
    def backward(ctx: Any, do_BTNW: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        q_BTNH, k_BSH, v_BSW, ids_BTK, o_BTNW = ctx.saved_tensors
        with plain(q_BTNH.device):
            wides = (wide(x) for x in (q_BTNH, k_BSH, v_BSW, o_BTNW, do_BTNW))
            gradients = [
                one_backward(q, k, v, o, do, ids_TK, ctx.scale)
                for q, k, v, o, do, ids_TK in zip(*wides, ids_BTK)
            ]
            dq, dk, dv = (torch.stack(x) for x in zip(*gradients))
        return dq.to(q_BTNH.dtype), dk.to(k_BSH.dtype), dv.to(v_BSW.dtype), None, None, None


def one(
    q_TNH: Tensor, k_SH: Tensor, v_SW: Tensor, ids_TK: Tensor, scale: float, taught: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, N, W], lse [T, N] and weights [T, K] (or nothing, [T, 0]) of one sequence."""
    o_TNW = q_TNH.new_empty(*q_TNH.shape[:2], v_SW.shape[-1])
    lse_TN = q_TNH.new_empty(q_TNH.shape[:2])
    weights_TK = q_TNH.new_empty(len(q_TNH), ids_TK.shape[-1] if taught else 0)
    for rows, end in chunks_of(q_TNH, k_SH, v_SW, ids_TK):
        support = Support(ids_TK[rows], end)
        x_RNK = support.sampled(q_TNH[rows] * scale, support.keys(k_SH))
        p_RNK = support.softmax(x_RNK)
        o_TNW[rows] = support.spread(p_RNK).mixed(support.keys(v_SW))
        # of the likeliest key p = exp(x - lse)
        lse_TN[rows] = x_RNK.amax(-1) - p_RNK.amax(-1).log()
        if taught:
            weights_TK[rows] = p_RNK.mean(1)
    lse_TN.masked_fill_(ids_TK[:, :1] < 0, -torch.inf)
    return o_TNW, lse_TN, weights_TK


def one_backward(
    q_TNH: Tensor,
    k_SH: Tensor,
    v_SW: Tensor,
    o_TNW: Tensor,
    do_TNW: Tensor,
    ids_TK: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of one sequence."""
    dq_TNH, dk, dv = torch.empty_like(q_TNH), Total(k_SH), Total(v_SW)
    delta_TN1 = (o_TNW * do_TNW).sum(-1, keepdim=True)
    for rows, end in chunks_of(q_TNH, k_SH, v_SW, ids_TK):
        support = Support(ids_TK[rows], end)
        keys, values = support.keys(k_SH), support.keys(v_SW)
        q_RNH, do_RNW = q_TNH[rows] * scale, do_TNW[rows]
        p_RNK = support.softmax(support.sampled(q_RNH, keys))
        dp_RNK = support.without(support.sampled(do_RNW, values), 0.0)
        p = support.spread(p_RNK)
        p.add(dv, do_RNW)
        ds = p.become(dp_RNK.sub_(delta_TN1[rows]).mul_(p_RNK))
        dq_TNH[rows] = ds.mixed(keys) * scale
        ds.add(dk, q_RNH)
    return dq_TNH, dk.value_SH, dv.value_SH


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """As `attention.sparse_attention`."""
    return attention_and_weights(q_BNTH, k_BSH, v_BSW, ids_BTK, scale=scale, taught=False)[:2]


def attention_and_weights(
    q_BNTH: Tensor,
    k_BSH: Tensor,
    v_BSW: Tensor,
    ids_BTK: Tensor,
    *,
    scale: float,
    taught: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and what `indexing.attention_at` gives: the mean attention [B, T, K] to each id."""
    q_BTNH = q_BNTH.transpose(1, 2)
    o, lse, weights = SparseAttention.apply(q_BTNH, k_BSH, v_BSW, ids_BTK, scale, taught)
    return o.transpose(1, 2), lse.transpose(1, 2), weights

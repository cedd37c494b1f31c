"""The indexer at length: its choice and its losses, in chunks of queries.

What the core computes from [T, S] scores, to the same numbers, without ever holding them: a chunk
of queries is scored against the keys up to its last one, and only what belongs to selected ids is
kept.

B batch, T queries (the last of S tokens), S keys, I indexer heads, N heads of the selected flow, H
any width, K kept keys, Q queries that are taught, R queries of a chunk.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsa_sandbox.core.indexer import select
from dsa_sandbox.kernels.chunked import Support, Total, chunks, plain, product, wide


class Scorer(NamedTuple):
    """What `Indexer.project` makes of the tokens: queries, weights and keys."""

    q_BITH: Tensor
    w_BTI: Tensor
    k_BSH: Tensor

    def at(self, queries_Q: Tensor) -> "Scorer":
        """With these queries only."""
        q_BIQH = self.q_BITH.index_select(2, queries_Q)
        return self._replace(q_BITH=q_BIQH, w_BTI=self.w_BTI.index_select(1, queries_Q))


def weighted(w_RI: Tensor, x_RIS: Tensor) -> Tensor:
    """sum_i w[r,i] x[r,i,s], [R, S]."""
    return torch.bmm(w_RI.unsqueeze(1), x_RIS).squeeze(1)


def relu_of(q_RIH: Tensor, k_SH: Tensor) -> Tensor:
    """relu(q[r,i] . k[s]), [R, I, S]."""
    return F.relu_(product(q_RIH.flatten(0, 1), k_SH)).unflatten(0, q_RIH.shape[:2])


class Selection(NamedTuple):
    """Ids [B, T, K] as `core.indexer.select` gives them, and their scores (anything at -1)."""

    ids_BTK: Tensor
    scores_BTK: Tensor

    def at(self, queries_Q: Tensor) -> "Selection":
        """Of these queries only."""
        return Selection(*(x.index_select(1, queries_Q) for x in self))


@torch.no_grad()
def select_chunked(
    scorer: Scorer, num_kept: int, num_sink: int = 0, num_local: int = 0
) -> Selection:
    """What `core.indexer.select` chooses by the scores of the indexer."""
    w_BTI, (num_queries, length) = scorer.w_BTI, (scorer.w_BTI.shape[1], scorer.k_BSH.shape[1])
    shape, positions = (
        (*w_BTI.shape[:2], min(num_kept, length)),
        range(length - num_queries, length),
    )
    found = Selection(w_BTI.new_full(shape, -1, dtype=torch.int32), w_BTI.new_zeros(shape))
    choose = select_rows if w_BTI.device.type == "cpu" else select
    with plain(w_BTI.device):
        for q_ITH, w_TI, k_SH, ids_TK, scores_TK in zip(*scorer, *found):
            q_TIH = q_ITH.transpose(0, 1)
            for rows, end in chunks(positions, w_TI.shape[-1], 1, w_TI.device):
                scores_RS = weighted(w_TI[rows], relu_of(q_TIH[rows], k_SH[:end]))
                ids_RK = choose(scores_RS.unsqueeze(0), num_kept, num_sink, num_local).squeeze(0)
                kept = slice(ids_RK.shape[-1])  # fewer than K where the first keys are fewer
                ids_TK[rows, kept] = ids_RK
                scores_TK[rows, kept] = scores_RS.gather(-1, ids_RK.long().clamp_(min=0))
    return found


def select_rows(scores_BTS: Tensor, num_kept: int, num_sink: int, num_local: int) -> Tensor:
    """`core.indexer.select` on a CPU, of finite scores in fp32.

    The K-th best score is all that has to be found, and numpy's `partition` finds it in a tenth of
    the time of `torch.topk`. What is better is kept, and of its equals the latest.
    """
    num_queries, length = scores_BTS.shape[-2:]
    num_kept, first = min(num_kept, length), length - num_queries
    scores_BTS = scores_BTS.clone()
    since = max(0, first - num_local + 1)
    age_TS = torch.arange(first, length)[:, None] - torch.arange(since, length)
    scores_BTS[..., :num_sink] = torch.inf
    recent_BTS = scores_BTS[..., since:].masked_fill_(age_TS < num_local, torch.inf)
    recent_BTS.masked_fill_(age_TS < 0, -torch.inf)
    scores_MS = scores_BTS.flatten(0, 1).numpy()
    kth_M1 = np.partition(scores_MS, length - num_kept, axis=-1)[:, [length - num_kept]]
    least_M1 = np.maximum(kth_M1, np.finfo(np.float32).min)  # from it on there is only the past
    kept_MS = scores_MS >= least_M1
    spare_M = np.count_nonzero(kept_MS, axis=-1) - num_kept
    (tied,) = np.nonzero(spare_M > 0)
    if len(tied):
        equal = scores_MS[tied] == least_M1[tied]
        kept_MS[tied] &= ~(equal & (equal.cumsum(-1) <= spare_M[tied, None]))
    counts_M = num_kept + np.minimum(spare_M, 0)
    flat = np.flatnonzero(kept_MS) - np.repeat(np.arange(len(scores_MS)) * length, counts_M)
    if (counts_M == num_kept).all():
        ids_MK = flat.reshape(-1, num_kept).astype(np.int32)
    else:
        ids_MK = np.full((len(scores_MS), num_kept), -1, np.int32)
        ids_MK[np.arange(num_kept) < counts_M[:, None]] = flat
    return torch.from_numpy(ids_MK).unflatten(0, scores_BTS.shape[:2])


class Teacher(NamedTuple):
    """The selected flow, which the indexer is to follow: its attention is the mean over its heads.

    `lse_BNT` is that of the selected keys.
    """

    q_BNTH: Tensor
    k_BSH: Tensor
    scale: float
    lse_BNT: Tensor | None = None

    def at(self, queries_Q: Tensor) -> "Teacher":
        """With these queries only."""
        lse_BNQ = None if self.lse_BNT is None else self.lse_BNT.index_select(2, queries_Q)
        return self._replace(q_BNTH=self.q_BNTH.index_select(2, queries_Q), lse_BNT=lse_BNQ)


def positions_of(queries_Q: Tensor | None, length: int) -> Sequence[int]:
    """Where the queries stand."""
    return range(length) if queries_Q is None else queries_Q.tolist()


@torch.no_grad()
def attention_at(ids_BQK: Tensor, teacher: Teacher, queries_Q: Tensor | None = None) -> Tensor:
    """The teacher's attention [B, Q, K] at the ids: mean over heads of exp(scale * q . k - lse)."""
    assert teacher.lse_BNT is not None
    q_BQNH, lse_BQN = teacher.q_BNTH.transpose(1, 2), teacher.lse_BNT.transpose(1, 2)
    weights_BQK = lse_BQN.new_empty(ids_BQK.shape)
    positions = positions_of(queries_Q, q_BQNH.shape[1])
    sizes = (q_BQNH.shape[2], ids_BQK.shape[-1] * q_BQNH.shape[-1], q_BQNH.device)
    with plain(q_BQNH.device):
        parts = (wide(q_BQNH) * teacher.scale, wide(teacher.k_BSH), lse_BQN, ids_BQK, weights_BQK)
        for q_QNH, k_SH, lse_QN, ids_QK, weights_QK in zip(*parts):
            for rows, end in chunks(positions, *sizes):
                support = Support(ids_QK[rows], end)
                x_RNK = support.sampled(q_QNH[rows], support.keys(k_SH))
                p_RNK = x_RNK.sub_(lse_QN[rows].unsqueeze(-1)).exp_()
                weights_QK[rows] = support.without(p_RNK.mean(1), 0.0)
    return weights_BQK


def sparse_kl(
    scorer: Scorer,
    selection: Selection,
    teacher_BQK: Tensor,
    queries_Q: Tensor | None = None,
) -> Tensor:
    """`core.indexer.indexer_kl` over the selected ids, [B, T], or [B, Q] of `queries_Q` only.

    DeepSeek-V3.2-Exp report, eq. 4. Scorer, selection and `teacher_BQK`, the teacher's attention at
    the ids, are of these queries. K numbers of a query are kept for the backward pass.
    """
    positions = positions_of(queries_Q, scorer.w_BTI.shape[1])
    q_BQIH = scorer.q_BITH.transpose(1, 2)
    return SparseKl.apply(q_BQIH, scorer.w_BTI, scorer.k_BSH, *selection, teacher_BQK, positions)


def divergence(scores: Tensor, teacher: Tensor, none: Tensor | None) -> tuple[Tensor, Tensor]:
    """KL(teacher || softmax of the scores) [..], and its gradient, softmax - teacher [.., S]."""
    if none is not None:
        scores = scores.masked_fill(none, torch.finfo(scores.dtype).min)
    log_softmax = scores.log_softmax(-1)
    kl = -(teacher * log_softmax).sum(-1) - torch.special.entr(teacher).sum(-1)
    change = log_softmax.exp_().sub_(teacher)
    return kl, change if none is None else change.masked_fill_(none, 0.0)


def through_relu(ds_RS: Tensor, w_RI: Tensor, relu_RIS: Tensor) -> Tensor:
    """Gradient [R, I, S] of what the relu was given, where `ds_RS` is that of the scores."""
    return torch.ops.aten.threshold_backward(w_RI.unsqueeze(-1) * ds_RS.unsqueeze(1), relu_RIS, 0)


class SparseKl(torch.autograd.Function):
    """`sparse_kl` of queries [B, Q, I, H] at `positions`."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BQIH: Tensor,
        w_BQI: Tensor,
        k_BSH: Tensor,
        ids_BQK: Tensor,
        scores_BQK: Tensor,
        teacher_BQK: Tensor,
        positions: Sequence[int],
    ) -> Tensor:
        kl_BQ, change_BQK = divergence(scores_BQK, teacher_BQK, ids_BQK < 0)
        ctx.save_for_backward(q_BQIH, w_BQI, k_BSH, ids_BQK, change_BQK)
        ctx.positions = positions
        return kl_BQ

    @staticmethod
    def backward(ctx: Any, dkl_BQ: Tensor) -> tuple[Tensor | None, ...]:
        q_BQIH, w_BQI, k_BSH, ids_BQK, change_BQK = ctx.saved_tensors
        dq, dw, dk = (torch.empty_like(x) for x in (q_BQIH, w_BQI, k_BSH))
        sizes = (w_BQI.shape[-1], ids_BQK.shape[-1] * k_BSH.shape[-1], w_BQI.device)
        with plain(w_BQI.device):
            for b in range(len(ids_BQK)):
                total = Total(k_BSH[b])
                for rows, end in chunks(ctx.positions, *sizes):
                    support = Support(ids_BQK[b, rows], end)
                    keys, q_RIH = support.keys(k_BSH[b]), q_BQIH[b, rows]
                    ds_RK = change_BQK[b, rows] * dkl_BQ[b, rows].unsqueeze(-1)
                    relu_RIK = support.without(F.relu_(support.sampled(q_RIH, keys)), 0.0)
                    dw[b, rows] = torch.bmm(relu_RIK, ds_RK.unsqueeze(-1)).squeeze(-1)
                    dz = support.spread(through_relu(ds_RK, w_BQI[b, rows], relu_RIK))
                    dq[b, rows] = dz.mixed(keys)
                    dz.add(total, q_RIH)
                dk[b] = total.value_SH
        return dq, dw, dk, None, None, None, None


def dense_kl(scorer: Scorer, teacher: Teacher, queries_Q: Tensor | None = None) -> Tensor:
    """`core.indexer.indexer_kl` over all the past, [B, T], or [B, Q] of `queries_Q` only.

    DeepSeek-V3.2-Exp report, eq. 3. Scorer and teacher are of these queries. The backward pass
    computes teacher and scores of each chunk again.
    """
    positions = positions_of(queries_Q, scorer.w_BTI.shape[1])
    q_BQIH, teacher_q = (x.transpose(1, 2) for x in (scorer.q_BITH, teacher.q_BNTH.detach()))
    taught = (teacher_q, teacher.k_BSH.detach(), teacher.scale)
    return DenseKl.apply(q_BQIH, scorer.w_BTI, scorer.k_BSH, positions, *taught)


class DenseKl(torch.autograd.Function):
    """`dense_kl` of queries [B, Q, I, H] at `positions`, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BQIH: Tensor,
        w_BQI: Tensor,
        k_BSH: Tensor,
        positions: Sequence[int],
        teacher_q: Tensor,
        teacher_k: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q_BQIH, w_BQI, k_BSH, teacher_q, teacher_k)
        ctx.positions, ctx.scale = positions, scale
        kl_BQ = w_BQI.new_empty(w_BQI.shape[:2])
        with plain(w_BQI.device):
            for b, rows, _, _, (kl_R, _) in DenseKl.parts(
                ctx, q_BQIH, w_BQI, k_BSH, teacher_q, teacher_k
            ):
                kl_BQ[b, rows] = kl_R
        return kl_BQ

    @staticmethod
    def backward(ctx: Any, dkl_BQ: Tensor) -> tuple[Tensor | None, ...]:
        q_BQIH, w_BQI, k_BSH = ctx.saved_tensors[:3]
        dq, dw, dk = torch.empty_like(q_BQIH), torch.empty_like(w_BQI), torch.zeros_like(k_BSH)
        with plain(w_BQI.device):
            for b, rows, end, relu_RIS, (_, change_RS) in DenseKl.parts(ctx, *ctx.saved_tensors):
                q_RIH, ds_RS = q_BQIH[b, rows], change_RS.mul_(dkl_BQ[b, rows].unsqueeze(-1))
                dw[b, rows] = torch.bmm(relu_RIS, ds_RS.unsqueeze(-1)).squeeze(-1)
                dz_MS = through_relu(ds_RS, w_BQI[b, rows], relu_RIS).flatten(0, 1)
                dq[b, rows] = (dz_MS @ k_BSH[b, :end]).view_as(q_RIH)
                dk[b, :end] += (q_RIH.flatten(0, 1).t() @ dz_MS).t()
        return dq, dw, dk, None, None, None, None

    @staticmethod
    def parts(
        ctx: Any,
        q_BQIH: Tensor,
        w_BQI: Tensor,
        k_BSH: Tensor,
        teacher_q: Tensor,
        teacher_k: Tensor,
    ) -> Iterator[tuple[int, slice, int, Tensor, tuple[Tensor, Tensor]]]:
        """Of each chunk: sequence, queries, end, relu [R, I, S], loss and its gradient."""
        device, num_heads = w_BQI.device, max(w_BQI.shape[-1], teacher_q.shape[2])
        teacher_q, teacher_k = wide(teacher_q), wide(teacher_k)
        position_Q = torch.as_tensor(list(ctx.positions), device=device)
        for b in range(len(q_BQIH)):
            for rows, end in chunks(ctx.positions, num_heads, 1, device):
                future_RS = position_Q[rows, None] < torch.arange(end, device=device)
                q_RNH = teacher_q[b, rows] * ctx.scale
                x_MS = product(q_RNH.flatten(0, 1), teacher_k[b, :end])
                x_RNS = x_MS.unflatten(0, q_RNH.shape[:2])
                x_RNS.masked_fill_(future_RS.unsqueeze(1), -torch.inf)
                teacher_RS = x_RNS.softmax(-1).mean(1)
                relu_RIS = relu_of(q_BQIH[b, rows], k_BSH[b, :end])
                scores_RS = weighted(w_BQI[b, rows], relu_RIS)
                yield b, rows, end, relu_RIS, divergence(scores_RS, teacher_RS, future_RS)

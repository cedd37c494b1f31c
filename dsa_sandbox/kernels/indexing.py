"""Selection and indexer losses for long sequences, in chunks of queries.

The core computes them from all scores [T, S]. Here a chunk of queries is scored against the keys up
to its last query, and only the scores at selected ids are kept. Results agree up to rounding.

B batch, T queries (the last of S tokens), S keys, I indexer heads, N heads of the selected flow, H
any width, K selected keys, Q queries that the indexer is trained on, R queries of a chunk, M rows
of a product.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsa_sandbox.core.indexer import select
from dsa_sandbox.core.rope import at_least_fp32
from dsa_sandbox.kernels.chunked import (
    Support,
    Total,
    chunks,
    no_autocast,
    product,
)


class Scorer(NamedTuple):
    """Queries, head weights and keys of the indexer, as `Indexer.project` returns them."""

    q_BITH: Tensor
    w_BTI: Tensor
    k_BSH: Tensor

    def at(self, queries_Q: Tensor) -> "Scorer":
        """Only the queries at the given positions."""
        q_BIQH = self.q_BITH.index_select(2, queries_Q)
        w_BQI = self.w_BTI.index_select(1, queries_Q)
        return Scorer(q_BIQH, w_BQI, self.k_BSH)


def weighted_sum(w_RI: Tensor, x_RIS: Tensor) -> Tensor:
    """sum_i w[r,i] x[r,i,s], [R, S]."""
    return torch.bmm(w_RI.unsqueeze(1), x_RIS).squeeze(1)


def relu_scores(q_RIH: Tensor, k_SH: Tensor) -> Tensor:
    """relu(q[r,i] . k[s]), [R, I, S]."""
    return F.relu_(product(q_RIH.flatten(0, 1), k_SH)).unflatten(0, q_RIH.shape[:2])


class Selection(NamedTuple):
    """Ids [B, T, K] as `core.indexer.select` returns them, and their scores (undefined at -1)."""

    ids_BTK: Tensor
    scores_BTK: Tensor

    def at(self, queries_Q: Tensor) -> "Selection":
        """Only the queries at the given positions."""
        ids_BQK = self.ids_BTK.index_select(1, queries_Q)
        return Selection(ids_BQK, self.scores_BTK.index_select(1, queries_Q))


@torch.no_grad()
def select_chunked(
    scorer: Scorer, num_kept: int, num_sink: int = 0, num_local: int = 0
) -> Selection:
    """The selection that `core.indexer.select` makes from all scores."""
    q_BITH, w_BTI, k_BSH = scorer
    batch, num_queries, num_heads = w_BTI.shape
    length = k_BSH.shape[1]
    device = w_BTI.device
    shape = (batch, num_queries, min(num_kept, length))
    ids_BTK = w_BTI.new_full(shape, -1, dtype=torch.int32)
    scores_BTK = w_BTI.new_zeros(shape)
    select_rows = select_on_cpu if device.type == "cpu" else select
    positions = range(length - num_queries, length)
    with no_autocast(device):
        for b in range(batch):
            q_TIH = q_BITH[b].transpose(0, 1)
            for rows, end in chunks(positions, num_heads, 1, device):
                relu_RIS = relu_scores(q_TIH[rows], k_BSH[b, :end])
                scores_RS = weighted_sum(w_BTI[b, rows], relu_RIS)
                ids_1RK = select_rows(scores_RS.unsqueeze(0), num_kept, num_sink, num_local)
                ids_RK = ids_1RK.squeeze(0)
                found = slice(ids_RK.shape[-1])  # fewer than K if the chunk has fewer keys
                ids_BTK[b, rows, found] = ids_RK
                scores_BTK[b, rows, found] = scores_RS.gather(-1, ids_RK.long().clamp_(min=0))
    return Selection(ids_BTK, scores_BTK)


def select_on_cpu(scores_BTS: Tensor, num_kept: int, num_sink: int, num_local: int) -> Tensor:
    """`core.indexer.select` for finite fp32 scores on a CPU: ids [B, T, K] int32.

    Finds the K-th best score of each query by numpy's `partition`, which takes a tenth of the time
    of `torch.topk`, and selects the keys with a better score, then the latest of those with an
    equal one.
    """
    num_queries, length = scores_BTS.shape[-2:]
    num_kept = min(num_kept, length)
    first = length - num_queries  # position of the first query
    # forced keys get +inf and future keys -inf; keys before `since` are neither local nor future
    scores_BTS = scores_BTS.clone()
    since = max(0, first - num_local + 1)
    age_TS = torch.arange(first, length)[:, None] - torch.arange(since, length)
    scores_BTS[..., :num_sink] = torch.inf
    recent_BTS = scores_BTS[..., since:].masked_fill_(age_TS < num_local, torch.inf)
    recent_BTS.masked_fill_(age_TS < 0, -torch.inf)

    scores_MS = scores_BTS.flatten(0, 1).numpy()
    kth_M1 = np.partition(scores_MS, length - num_kept, axis=-1)[:, [length - num_kept]]
    # a query with fewer than K past keys has -inf as K-th score: select its finite scores only
    least_M1 = np.maximum(kth_M1, np.finfo(np.float32).min)
    selected_MS = scores_MS >= least_M1
    num_spare_M = np.count_nonzero(selected_MS, axis=-1) - num_kept
    (tied,) = np.nonzero(num_spare_M > 0)
    if len(tied):
        # more than K, since several keys equal the K-th score: drop the earliest of these
        equal = scores_MS[tied] == least_M1[tied]
        selected_MS[tied] &= ~(equal & (equal.cumsum(-1) <= num_spare_M[tied, None]))

    counts_M = num_kept + np.minimum(num_spare_M, 0)  # selected keys of each query
    row_start = np.repeat(np.arange(len(scores_MS)) * length, counts_M)
    ids = np.flatnonzero(selected_MS) - row_start
    if (counts_M == num_kept).all():
        ids_MK = ids.reshape(-1, num_kept).astype(np.int32)
    else:
        ids_MK = np.full((len(scores_MS), num_kept), -1, np.int32)
        ids_MK[np.arange(num_kept) < counts_M[:, None]] = ids
    return torch.from_numpy(ids_MK).unflatten(0, scores_BTS.shape[:2])


class Teacher(NamedTuple):
    """The selected flow whose attention, averaged over heads, the indexer learns to predict.

    Logits are `scale` * q . k; `lse_BNT` is their logsumexp over the selected keys.
    """

    q_BNTH: Tensor
    k_BSH: Tensor
    scale: float
    lse_BNT: Tensor | None = None

    def at(self, queries_Q: Tensor) -> "Teacher":
        """Only the queries at the given positions."""
        q_BNQH = self.q_BNTH.index_select(2, queries_Q)
        lse_BNQ = None if self.lse_BNT is None else self.lse_BNT.index_select(2, queries_Q)
        return Teacher(q_BNQH, self.k_BSH, self.scale, lse_BNQ)


def positions_of(queries_Q: Tensor | None, length: int) -> Sequence[int]:
    """The positions of the queries; None: of all `length` tokens."""
    return range(length) if queries_Q is None else queries_Q.tolist()


@torch.no_grad()
def attention_at(ids_BQK: Tensor, teacher: Teacher, queries_Q: Tensor | None = None) -> Tensor:
    """The teacher's attention [B, Q, K] at the ids: mean over heads of exp(scale * q . k - lse).

    `ids_BQK` and `teacher` hold the queries at the positions `queries_Q`; None: of all tokens.
    """
    assert teacher.lse_BNT is not None
    q_BQNH = teacher.q_BNTH.transpose(1, 2)
    lse_BQN = teacher.lse_BNT.transpose(1, 2)
    _, num_queries, num_heads, width = q_BQNH.shape
    device = q_BQNH.device
    attention_BQK = lse_BQN.new_empty(ids_BQK.shape)
    positions = positions_of(queries_Q, num_queries)
    copied = ids_BQK.shape[-1] * width
    with no_autocast(device):
        scaled_BQNH = at_least_fp32(q_BQNH) * teacher.scale
        k_BSH = at_least_fp32(teacher.k_BSH)
        for b in range(len(ids_BQK)):
            for rows, end in chunks(positions, num_heads, copied, device):
                support = Support(ids_BQK[b, rows], end)
                x_RNK = support.sampled(scaled_BQNH[b, rows], support.keys(k_BSH[b]))
                p_RNK = x_RNK.sub_(lse_BQN[b, rows].unsqueeze(-1)).exp_()
                attention_BQK[b, rows] = support.fill_missing(p_RNK.mean(1), 0.0)
    return attention_BQK


def sparse_kl(
    scorer: Scorer,
    selection: Selection,
    teacher_BQK: Tensor,
    queries_Q: Tensor | None = None,
) -> Tensor:
    """`core.indexer.indexer_kl` over the selected keys, [B, Q] in nats.

    DeepSeek-V3.2-Exp report, eq. 4. `teacher_BQK` is the teacher's attention at the ids. All
    arguments hold the queries at the positions `queries_Q`; None: of all tokens. K numbers of each
    query are kept for the backward pass.
    """
    positions = positions_of(queries_Q, scorer.w_BTI.shape[1])
    q_BQIH = scorer.q_BITH.transpose(1, 2)
    return SparseKl.apply(q_BQIH, scorer.w_BTI, scorer.k_BSH, *selection, teacher_BQK, positions)


def divergence(scores: Tensor, teacher: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || softmax of the scores) [..] in nats, and its gradient [.., S].

    The gradient with respect to the scores is softmax - teacher. Keys that are `missing` are left
    out of both.
    """
    scores = scores.masked_fill(missing, torch.finfo(scores.dtype).min)  # finite: 0 * -inf is NaN
    log_softmax = scores.log_softmax(-1)
    kl = -(teacher * log_softmax).sum(-1) - torch.special.entr(teacher).sum(-1)
    gradient = log_softmax.exp_().sub_(teacher)
    return kl, gradient.masked_fill_(missing, 0.0)


def relu_gradient(ds_RS: Tensor, w_RI: Tensor, relu_RIS: Tensor) -> Tensor:
    """Gradient [R, I, S] of the relu's input, from the gradient `ds_RS` of the scores."""
    return torch.ops.aten.threshold_backward(w_RI.unsqueeze(-1) * ds_RS.unsqueeze(1), relu_RIS, 0)


class SparseKl(torch.autograd.Function):
    """`sparse_kl` of queries [B, Q, I, H] at `positions`, with gradients for the indexer."""

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
        kl_BQ, gradient_BQK = divergence(scores_BQK, teacher_BQK, ids_BQK < 0)
        ctx.save_for_backward(q_BQIH, w_BQI, k_BSH, ids_BQK, gradient_BQK)
        ctx.positions = positions
        return kl_BQ

    @staticmethod
    def backward(ctx: Any, dkl_BQ: Tensor) -> tuple[Tensor | None, ...]:
        q_BQIH, w_BQI, k_BSH, ids_BQK, gradient_BQK = ctx.saved_tensors
        dq = torch.empty_like(q_BQIH)
        dw = torch.empty_like(w_BQI)
        dk = torch.empty_like(k_BSH)
        num_heads = w_BQI.shape[-1]
        copied = ids_BQK.shape[-1] * k_BSH.shape[-1]
        with no_autocast(w_BQI.device):
            for b in range(len(ids_BQK)):
                total = Total(k_BSH[b])
                for rows, end in chunks(ctx.positions, num_heads, copied, w_BQI.device):
                    support = Support(ids_BQK[b, rows], end)
                    keys = support.keys(k_BSH[b])
                    q_RIH = q_BQIH[b, rows]
                    ds_RK = gradient_BQK[b, rows] * dkl_BQ[b, rows].unsqueeze(-1)
                    relu_RIK = F.relu_(support.sampled(q_RIH, keys))
                    relu_RIK = support.fill_missing(relu_RIK, 0.0)
                    dw[b, rows] = torch.bmm(relu_RIK, ds_RK.unsqueeze(-1)).squeeze(-1)
                    dz = support.weights(relu_gradient(ds_RK, w_BQI[b, rows], relu_RIK))
                    dq[b, rows] = dz.mixed(keys)
                    dz.added(total, q_RIH)
                dk[b] = total.value_SH
        return dq, dw, dk, None, None, None, None


def dense_kl(scorer: Scorer, teacher: Teacher, queries_Q: Tensor | None = None) -> Tensor:
    """`core.indexer.indexer_kl` over all past keys, [B, Q] in nats.

    DeepSeek-V3.2-Exp report, eq. 3. Both arguments hold the queries at the positions `queries_Q`;
    None: of all tokens. The backward pass computes teacher and scores of each chunk again.
    """
    positions = positions_of(queries_Q, scorer.w_BTI.shape[1])
    q_BQIH = scorer.q_BITH.transpose(1, 2)
    teacher_q = teacher.q_BNTH.detach().transpose(1, 2)
    teacher_k = teacher.k_BSH.detach()
    return DenseKl.apply(
        q_BQIH, scorer.w_BTI, scorer.k_BSH, positions, teacher_q, teacher_k, teacher.scale
    )


class ChunkLoss(NamedTuple):
    """The loss of one chunk of queries over all past keys, and what its backward pass needs."""

    sequence: int  # index within the batch
    rows: slice  # queries
    end: int  # number of keys
    relu_RIS: Tensor
    kl_R: Tensor
    gradient_RS: Tensor  # with respect to the scores


class DenseKl(torch.autograd.Function):
    """`dense_kl` of queries [B, Q, I, H] at `positions`, with gradients for the indexer."""

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
        ctx.positions = positions
        ctx.scale = scale
        kl_BQ = w_BQI.new_empty(w_BQI.shape[:2])
        with no_autocast(w_BQI.device):
            for chunk in DenseKl.chunk_losses(ctx, q_BQIH, w_BQI, k_BSH, teacher_q, teacher_k):
                kl_BQ[chunk.sequence, chunk.rows] = chunk.kl_R
        return kl_BQ

    @staticmethod
    def backward(ctx: Any, dkl_BQ: Tensor) -> tuple[Tensor | None, ...]:
        q_BQIH, w_BQI, k_BSH = ctx.saved_tensors[:3]
        dq = torch.empty_like(q_BQIH)
        dw = torch.empty_like(w_BQI)
        dk = torch.zeros_like(k_BSH)
        with no_autocast(w_BQI.device):
            for chunk in DenseKl.chunk_losses(ctx, *ctx.saved_tensors):
                b, rows, end, relu_RIS, _, gradient_RS = chunk
                q_RIH = q_BQIH[b, rows]
                ds_RS = gradient_RS.mul_(dkl_BQ[b, rows].unsqueeze(-1))
                dw[b, rows] = torch.bmm(relu_RIS, ds_RS.unsqueeze(-1)).squeeze(-1)
                dz_MS = relu_gradient(ds_RS, w_BQI[b, rows], relu_RIS).flatten(0, 1)
                dq[b, rows] = (dz_MS @ k_BSH[b, :end]).view_as(q_RIH)
                dk[b, :end] += (q_RIH.flatten(0, 1).t() @ dz_MS).t()
        return dq, dw, dk, None, None, None, None

    @staticmethod
    def chunk_losses(
        ctx: Any,
        q_BQIH: Tensor,
        w_BQI: Tensor,
        k_BSH: Tensor,
        teacher_q: Tensor,
        teacher_k: Tensor,
    ) -> Iterator[ChunkLoss]:
        """The loss of every chunk of every sequence."""
        device = w_BQI.device
        num_heads = max(w_BQI.shape[-1], teacher_q.shape[2])
        teacher_q = at_least_fp32(teacher_q)
        teacher_k = at_least_fp32(teacher_k)
        position_Q = torch.as_tensor(list(ctx.positions), device=device)
        for b in range(len(q_BQIH)):
            for rows, end in chunks(ctx.positions, num_heads, 1, device):
                future_RS = position_Q[rows, None] < torch.arange(end, device=device)
                q_RNH = teacher_q[b, rows] * ctx.scale
                x_MS = product(q_RNH.flatten(0, 1), teacher_k[b, :end])
                x_RNS = x_MS.unflatten(0, q_RNH.shape[:2])
                x_RNS.masked_fill_(future_RS.unsqueeze(1), -torch.inf)
                teacher_RS = x_RNS.softmax(-1).mean(1)
                relu_RIS = relu_scores(q_BQIH[b, rows], k_BSH[b, :end])
                scores_RS = weighted_sum(w_BQI[b, rows], relu_RIS)
                kl_R, gradient_RS = divergence(scores_RS, teacher_RS, future_RS)
                yield ChunkLoss(b, rows, end, relu_RIS, kl_R, gradient_RS)

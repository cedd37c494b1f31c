"""The lightning indexer: scores of past tokens, selection of the K best, and the indexer's loss.

B batch, T query tokens, S key tokens, D width, I indexer heads, H indexer head width, K selected
keys of a query, R width of the input that queries are projected from.
Follows DeepSeek-V3.2-Exp (report section 2 and its inference code), without the quantisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.rope import at_least_fp32, rope_table, rotate_partially


class Indexer(nn.Module):
    """Scores every past token for every query: I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]).

    DeepSeek-V3.2-Exp report, eq. 1. All indexer heads share one key; the weights w are neither
    normalised nor restricted to positive values. RoPE rotates the first `rotary_width` features of
    each head. `query_width`: width R of the input that queries are projected from.
    """

    rope_2TH: Tensor

    def __init__(self, model: Model, query_width: int, rotary_width: int) -> None:
        super().__init__()
        self.num_heads = model.indexer_heads
        self.head_width = model.indexer_head_width
        self.q = nn.Linear(query_width, self.num_heads * self.head_width, bias=False)
        self.k = nn.Linear(model.width, self.head_width, bias=False)
        self.k_norm = nn.LayerNorm(self.head_width, eps=1e-6)
        self.w = nn.Linear(model.width, self.num_heads, bias=False)
        rope_2TH = rope_table(model.context, rotary_width, model.rope_base)
        self.register_buffer("rope_2TH", rope_2TH, persistent=False)

    def forward(self, x_BTD: Tensor, query_BTR: Tensor) -> Tensor:
        """Scores [B, T, S] in fp32, of future keys too; no gradient reaches the inputs.

        Keys and head weights are projected from `x_BTD`, queries from `query_BTR`.
        """
        return self.score(*self.project(x_BTD, query_BTR))

    def project(self, x_BTD: Tensor, query_BTR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, I, T, H], head weights [B, T, I] and keys [B, S, H], all in fp32."""
        # detached: the KL loss trains nothing but the indexer
        x_BTD = x_BTD.detach()
        q_BTIH = self.q(query_BTR.detach()).unflatten(-1, (self.num_heads, self.head_width))
        k_BSH = self.k_norm(at_least_fp32(self.k(x_BTD)))
        # fp32 from here on: in half precision many scores would be equal
        q_BITH = rotate_partially(at_least_fp32(q_BTIH.transpose(1, 2)), self.rope_2TH)
        k_BSH = rotate_partially(at_least_fp32(k_BSH), self.rope_2TH)
        w_BTI = at_least_fp32(self.w(x_BTD)) * (self.num_heads * self.head_width) ** -0.5
        return q_BITH, w_BTI, k_BSH

    def score(self, q_BITH: Tensor, w_BTI: Tensor, k_BSH: Tensor) -> Tensor:
        """Scores [B, T, S] from the results of `project` (DeepSeek-V3.2-Exp report, eq. 1)."""
        with torch.autocast(q_BITH.device.type, enabled=False):
            relu_BITS = F.relu(q_BITH @ k_BSH.transpose(-1, -2).unsqueeze(1))
            return (w_BTI.transpose(1, 2).unsqueeze(-1) * relu_BITS).sum(1)


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """[T, S] bool, True where key s is not later than query t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def forced_mask(
    num_queries: int, length: int, num_sink: int, num_local: int, device: torch.device
) -> Tensor:
    """[T, S] bool, True at the keys that are selected whatever their score.

    These are the first `num_sink` tokens and the last `num_local` tokens up to the query. Later
    keys than the query are True as well: combine with a causal mask. The queries are the last
    `num_queries` of `length` tokens.
    """
    position_S = torch.arange(length, device=device)
    position_T1 = position_S[length - num_queries :, None]
    is_sink_S = position_S < num_sink
    is_local_TS = position_T1 - position_S < num_local
    return is_sink_S | is_local_TS


def select(scores_BTS: Tensor, num_kept: int, num_sink: int = 0, num_local: int = 0) -> Tensor:
    """Ids [B, T, K] int32 of the K best-scoring past keys of each query, ascending.

    A query with fewer than K past tokens has -1 in the remaining places; K is at most S. Of equal
    scores the later position is selected. The keys of `forced_mask` are always selected and count
    within K. The queries are the last T of the S tokens.
    """
    num_queries, length = scores_BTS.shape[-2:]
    position_S = torch.arange(length, device=scores_BTS.device)
    future_TS = position_S > position_S[length - num_queries :, None]
    forced_TS = forced_mask(num_queries, length, num_sink, num_local, scores_BTS.device)

    # `topk` does not define which of several equal scores it returns. So each key gets a unique
    # int64: its score in the high 32 bits, its position in the low 32 bits.
    rank_BTS = sortable_integers(scores_BTS.detach().float())
    rank_BTS = rank_BTS.masked_fill_(forced_TS, torch.iinfo(torch.int32).max)
    key_BTS = (rank_BTS << 32).bitwise_or_(position_S)
    # masked last, so that no future key is selected even if it is forced
    lowest = torch.iinfo(torch.int64).min
    key_BTS = key_BTS.masked_fill_(future_TS, lowest)
    best_BTK = key_BTS.topk(min(num_kept, length), dim=-1, sorted=False).values

    ids_BTK = best_BTK & 0xFFFFFFFF
    # a missing key has the id `length` while sorting, so that it ends up last
    ids_BTK = ids_BTK.masked_fill(best_BTK == lowest, length).sort(dim=-1).values
    return ids_BTK.masked_fill(ids_BTK == length, -1).int()


def sortable_integers(scores: Tensor) -> Tensor:
    """Integers (int64, within the range of int32) in the same order as fp32 `scores`; -0 equals 0.

    The bits of positive floats, read as integers, are ordered like the floats. Those of negative
    floats are ordered in reverse, so all their bits except the sign are inverted.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0 + 0 is +0
    sign = bits >> 31  # -1 (all bits set) for a negative score, else 0
    return (bits ^ (sign & 0x7FFFFFFF)).long()


def selected_mask(ids_BTK: Tensor, length: int) -> Tensor:
    """[B, T, S] bool, True at the ids of each query that are not later than the query."""
    batch, num_queries, _ = ids_BTK.shape
    # -1 is written into an extra last column, which is cut off again
    column_BTK = ids_BTK.long() % (length + 1)
    mask_BTS = ids_BTK.new_zeros(batch, num_queries, length + 1, dtype=torch.bool)
    mask_BTS = mask_BTS.scatter_(-1, column_BTK, True)
    past_TS = mask_BTS.new_ones(num_queries, length).tril(length - num_queries)
    return mask_BTS[..., :length] & past_TS


def indexer_kl(scores_BTS: Tensor, teacher_BTS: Tensor, support_BTS: Tensor) -> Tensor:
    """KL(teacher || softmax of the scores), both over the keys of `support_BTS`; [B, T] in nats.

    DeepSeek-V3.2-Exp report, eq. 3 (support: all past keys) and eq. 4 (support: selected keys).
    The gradient with respect to a score is softmax - teacher; the teacher gets none.
    """
    teacher_BTS = teacher_BTS.detach()
    # The lowest finite number, not -inf: outside the support the teacher is 0, and 0 * -inf is NaN.
    lowest = torch.finfo(scores_BTS.dtype).min
    log_p_BTS = scores_BTS.masked_fill(~support_BTS, lowest).log_softmax(-1)
    # cross-entropy minus the teacher's entropy
    return -(teacher_BTS * log_p_BTS).sum(-1) - torch.special.entr(teacher_BTS).sum(-1)

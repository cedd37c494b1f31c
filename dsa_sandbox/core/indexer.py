"""The lightning indexer: which past tokens a query may look at, and how it learns to choose.

B batch, T query tokens, S key tokens, D width, I indexer heads, H indexer head width, K kept keys.
Follows DeepSeek-V3.2-Exp (report section 2 and its inference code), without the quantisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.rope import Table, rope_table, rotate_first


class Indexer(nn.Module):
    """Scores every past token for every query: I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]).

    DeepSeek-V3.2-Exp report, eq. 1. One key serves all indexer heads; the weights w are neither
    normalised nor positive. The first half of each head is rotated, by a table of its own width.
    """

    cos_TH: Tensor
    sin_TH: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.num_heads, self.head_width = model.indexer_heads, model.indexer_head_width
        self.q = nn.Linear(model.width, self.num_heads * self.head_width, bias=False)
        self.k = nn.Linear(model.width, self.head_width, bias=False)
        self.k_norm = nn.LayerNorm(self.head_width, eps=1e-6)
        self.w = nn.Linear(model.width, self.num_heads, bias=False)
        table = rope_table(model.context, self.head_width // 2, model.rope_base)
        self.register_buffer("cos_TH", table.cos_TH, persistent=False)
        self.register_buffer("sin_TH", table.sin_TH, persistent=False)

    def forward(self, x_BTD: Tensor, query_BTR: Tensor | None = None) -> Tensor:
        """Scores [B, T, S] in fp32, future keys included; no gradient reaches what it reads.

        `query_BTR` is what queries are made from, where that is not the stream.
        """
        return self.score(*self.project(x_BTD, query_BTR))

    def project(
        self, x_BTD: Tensor, query_BTR: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, I, T, H], weights [B, T, I], keys [B, S, H] of tokens from `start` on."""
        x_BTD = x_BTD.detach()  # the indexer learns from its own loss; language loss never comes
        query_BTR = x_BTD if query_BTR is None else query_BTR.detach()
        table = Table(self.cos_TH[start:], self.sin_TH[start:])
        q_BITH = self.q(query_BTR).unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        k_BSH = self.k_norm(self.k(x_BTD).float())
        w_BTI = self.w(x_BTD).float() * (self.num_heads * self.head_width) ** -0.5
        return rotate_first(q_BITH.float(), table), w_BTI, rotate_first(k_BSH.float(), table)

    def score(self, q_BITH: Tensor, w_BTI: Tensor, k_BSH: Tensor) -> Tensor:
        """Scores [B, T, S]."""
        with torch.autocast(q_BITH.device.type, enabled=False):
            relu_BITS = F.relu(q_BITH @ k_BSH.transpose(-1, -2).unsqueeze(1))
            return (w_BTI.transpose(1, 2).unsqueeze(-1) * relu_BITS).sum(1)


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """[T, S] True where query t may see key s."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def select(scores_BTS: Tensor, num_kept: int, num_sink: int = 0, num_local: int = 0) -> Tensor:
    """Ids [B, T, K] int32 of the K best-scoring past keys of each query, ascending, -1 if fewer.

    Ties go to the later position. The first `num_sink` and the last `num_local` past tokens are
    always kept and count within K. K is cut to S where a sequence is shorter than it.
    """
    num_queries, length = scores_BTS.shape[-2:]  # the queries are the last of the tokens
    position_S = torch.arange(length, device=scores_BTS.device)
    age_TS = position_S[length - num_queries :, None] - position_S
    forced_TS = (position_S < num_sink) | (age_TS < num_local)
    ranks_BTS = rank_order(scores_BTS.detach().float())
    ranks_BTS = ranks_BTS.masked_fill_(forced_TS, torch.iinfo(torch.int32).max)
    key_BTS = (ranks_BTS << 32).bitwise_or_(position_S)
    future = torch.iinfo(torch.int64).min
    key_BTS = key_BTS.masked_fill_(age_TS < 0, future)
    best_BTK = key_BTS.topk(min(num_kept, length), dim=-1, sorted=False).values
    ids_BTK = (best_BTK & 0xFFFFFFFF).masked_fill(best_BTK == future, length).sort(dim=-1).values
    return ids_BTK.masked_fill(ids_BTK == length, -1).int()


def rank_order(scores: Tensor) -> Tensor:
    """Whole numbers (int64, in the range of int32) in the order of fp32 scores; -0 equals 0."""
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # of a negative, all bits but the sign turn


def kept_mask(ids_BTK: Tensor, length: int) -> Tensor:
    """[B, T, S] True at the selected ids, and never at a later token than the query."""
    num_queries, device = ids_BTK.shape[1], ids_BTK.device
    slots_BTK = ids_BTK.long() % (length + 1)  # -1 falls into a spare last column
    spare_BTS = torch.zeros(*ids_BTK.shape[:2], length + 1, dtype=torch.bool, device=device)
    past_TS = spare_BTS.new_ones(num_queries, length).tril(length - num_queries)
    return spare_BTS.scatter_(-1, slots_BTK, True)[..., :length] & past_TS


def indexer_kl(scores_BTS: Tensor, teacher_BTS: Tensor, support_BTS: Tensor) -> Tensor:
    """KL(teacher || softmax of the scores over the support) [B, T], in nats.

    DeepSeek-V3.2-Exp report, eq. 3 (support: all past keys) and eq. 4 (support: selected keys).
    The gradient with respect to a score is softmax - teacher.
    """
    teacher_BTS = teacher_BTS.detach()
    # masked to a finite floor: no weight times it is nothing, and its exponential is nothing
    scores_BTS = scores_BTS.masked_fill(~support_BTS, torch.finfo(scores_BTS.dtype).min)
    cross_BTS = teacher_BTS * scores_BTS.log_softmax(-1)
    return -cross_BTS.sum(-1) - torch.special.entr(teacher_BTS).sum(-1)

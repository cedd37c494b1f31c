"""Re-warming: a sparse network whose indexer learns from attention over all past keys.

The loss over the selected keys (DeepSeek-V3.2-Exp report, eq. 4) has no gradient at any other key:
it orders the selected keys, and cannot discover one that was left out. So while a network is
fine-tuned, its indexer goes on with the loss of its warm-up (eq. 3). The network's output stays
that of the selected keys, to the bit.

B batch, T tokens (queries), S keys, D width, Q queries that the indexer is trained on.
"""

import torch
from torch import Tensor

from dsa_sandbox.core.attention import Queries, TopKAttention
from dsa_sandbox.core.indexer import causal_mask, indexer_kl
from dsa_sandbox.core.rope import at_least_fp32
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.kernels.indexing import Scorer, Teacher
from dsa_sandbox.selection.backends import MULTI_QUERY, warmup_kl


def use(model: Transformer, on: bool) -> None:
    """Take the indexer's loss over all past keys, or (not `on`) over the attended keys.

    With every backend and every selection of keys. Does nothing for a network without an indexer.
    """
    for block in model.blocks:
        if isinstance(block.attention, TopKAttention):
            block.attention.lesson = all_keys_kl if on else None


def all_keys_kl(
    attention: TopKAttention, x_BTD: Tensor, rope_2TH: Tensor, train_indexer: Queries
) -> Tensor:
    """The indexer's loss over all past keys, [B, T] or [B, Q], in nats; for the indexer alone.

    DeepSeek-V3.2-Exp report, eq. 3; its teacher is the attention of the selected flow. In chunks
    where a kernel computes the attention, so that memory does not grow with T * S.
    """
    project = attention.indexer.project
    scorer = Scorer(*project(x_BTD, attention.indexer_query(x_BTD)))
    past_TS = causal_mask(x_BTD.shape[1], x_BTD.device)
    multi_query = MULTI_QUERY.get(type(attention))
    if multi_query is None:  # a class of the user's: only itself knows its attention
        with torch.no_grad():
            past_BTS = past_TS.expand(len(x_BTD), -1, -1)
            teacher_BTS = attention.attend_with_teacher(x_BTD, rope_2TH, past_BTS)[1]
        rows = slice(None) if train_indexer is True else train_indexer
        scores_BTS = attention.indexer.score(*scorer)
        return indexer_kl(scores_BTS[:, rows], teacher_BTS[:, rows], past_TS[rows])
    with torch.no_grad():
        q_BNTH, k_BSH, _, scale, _ = multi_query(attention, x_BTD, rope_2TH)
    teacher = Teacher(q_BNTH, k_BSH.to(q_BNTH.dtype), scale)
    if attention.backend is not None:
        return warmup_kl(scorer, teacher, train_indexer)
    if isinstance(train_indexer, Tensor):
        scorer, teacher = scorer.at(train_indexer), teacher.at(train_indexer)
        past_TS = past_TS[train_indexer]
    teacher_BQS = mean_attention(teacher, past_TS)
    return indexer_kl(attention.indexer.score(*scorer), teacher_BQS, past_TS)


@torch.no_grad()
def mean_attention(teacher: Teacher, past_QS: Tensor) -> Tensor:
    """Attention [B, Q, S] over the keys of `past_QS`, averaged over heads, in fp32."""
    q_BNQH = teacher.q_BNTH * teacher.scale
    # all heads share the key: their queries meet it in one product
    logits_BMS = at_least_fp32(q_BNQH.flatten(1, 2) @ teacher.k_BSH.mT)
    logits_BNQS = logits_BMS.unflatten(1, q_BNQH.shape[1:3])
    return logits_BNQS.masked_fill_(~past_QS, -torch.inf).softmax(-1).mean(1)
